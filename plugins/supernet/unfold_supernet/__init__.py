"""The kind ``supernet``: one set of weights, many models."""
