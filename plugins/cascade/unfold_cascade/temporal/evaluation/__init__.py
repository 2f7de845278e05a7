"""Evaluation of policies, baselines and bootstrap intervals."""
