"""Latency of every query under a plan: the queueing simulation (InferLine, section 4)."""
