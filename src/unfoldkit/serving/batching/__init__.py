"""Dynamic batching of requests."""
