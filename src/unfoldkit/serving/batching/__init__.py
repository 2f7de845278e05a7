"""Requests joined to batches."""
