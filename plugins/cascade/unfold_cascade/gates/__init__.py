"""Deferral rules on arrays: confidences, exact search of cuts, Pareto fronts, calibration, and the paper's greedy."""
