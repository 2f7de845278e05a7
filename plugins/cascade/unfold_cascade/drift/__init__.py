"""Drift between the data of a plan and new data (``plan --check``)."""
