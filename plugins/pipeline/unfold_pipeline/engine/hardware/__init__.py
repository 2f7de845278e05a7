"""What an engine runs: the shape of a model, the GPU below it, and the memory that is left for the KV cache."""
