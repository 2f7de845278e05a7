"""The spec resolved once: stages of the search, profile, instance types, allocations."""
