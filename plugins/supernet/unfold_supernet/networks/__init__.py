"""Elastic networks: search space, shared weights, subnets."""
