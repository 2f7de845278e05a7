"""Elastic networks: the search space, the shared weights, and subnets that use slices of them."""
