"""Drawings and texts of figures, one module per type of figure."""
