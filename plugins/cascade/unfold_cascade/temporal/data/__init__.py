"""Tables over time, features, stage labels and early-warning metrics."""
