"""Supernet training, subnet search and evaluation."""
