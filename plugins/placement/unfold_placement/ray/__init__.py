"""The Ray backend. Programs on Ray use :mod:`unfold_placement.ray.api`."""
