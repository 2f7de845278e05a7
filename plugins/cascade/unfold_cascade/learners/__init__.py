"""Estimators and their costs, on arrays: no spec is read here."""
