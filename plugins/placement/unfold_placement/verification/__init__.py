"""Verification of policies: explicit-state search over the running controller and policy objects."""
