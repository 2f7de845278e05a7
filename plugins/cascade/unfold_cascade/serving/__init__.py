"""Stateless serving of a cascade, or of its baseline."""
