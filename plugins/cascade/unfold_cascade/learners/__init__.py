"""Estimators of the model zoo and their costs (arrays in, arrays out)."""
