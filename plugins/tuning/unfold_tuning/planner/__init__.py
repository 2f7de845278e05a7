"""The exact cost–deadline frontier, baselines, bounds and re-planning."""
