"""LLM engines with continuous batching, simulated iteration by iteration (the scheduler of vLLM V1)."""
