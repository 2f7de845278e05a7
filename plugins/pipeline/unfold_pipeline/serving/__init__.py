"""HTTP endpoint, metrics and live page of a served pipeline."""
