"""Search for the cheapest GPUs, parallelism, limits and replicas that keep the targets of an engine."""
