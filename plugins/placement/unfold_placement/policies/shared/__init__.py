"""Base parts of queue policies."""
