"""Hard gates: confidences, exact joint search of the cuts, Pareto fronts, and the paper's greedy."""
