"""Stages as running replicas, local or on Ray Serve."""
