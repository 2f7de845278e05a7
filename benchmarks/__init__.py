"""Figures of unfold beside its peers: ``python -m benchmarks`` lists them."""
