"""Families that are trained here: their space, data, training, measures and storage."""
