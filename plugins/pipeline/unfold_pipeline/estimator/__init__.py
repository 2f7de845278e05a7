"""Latency of every query under a plan: the queueing simulation (the Estimator of InferLine, SoCC 2020)."""
