"""Stateless serving of a cascade."""
