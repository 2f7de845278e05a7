"""Panel data, features and windows of a longitudinal cascade."""
