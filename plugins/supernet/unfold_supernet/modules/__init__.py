"""Families from a user's own torch module: which parts are elastic, the members, and their training."""
