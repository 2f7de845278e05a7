"""Kubernetes as a backend: names are extended resources of nodes, the queue is made of scheduling gates."""
