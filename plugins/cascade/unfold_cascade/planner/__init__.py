"""From score tables to the Pareto front and the certified policy."""
