"""Exact simulation of batched FIFO queues: a compiled kernel a stage, and the same in plain Python."""
