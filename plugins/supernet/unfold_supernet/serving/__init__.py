"""HTTP service of a trained family."""
