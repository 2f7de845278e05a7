"""The search for a cascade: score tables, Pareto front of policies, certificate and selection."""
