"""Traces of requests with their tokens."""
