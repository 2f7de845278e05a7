"""Early-warning metrics, baselines and bootstrap intervals."""
