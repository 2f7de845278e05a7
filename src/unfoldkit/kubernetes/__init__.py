"""Kubernetes for controllers: the API server, leader election, and the scale of workloads."""
