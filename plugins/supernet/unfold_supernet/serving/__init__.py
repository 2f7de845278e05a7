"""HTTP service of a trained supernet."""
