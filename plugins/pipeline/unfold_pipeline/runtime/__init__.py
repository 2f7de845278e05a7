"""Stages as running replicas, on local processes or on Ray Serve."""
