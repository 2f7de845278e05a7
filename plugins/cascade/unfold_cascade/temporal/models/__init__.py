"""Fitted models, their predictions, and the study that splits them into cohorts."""
