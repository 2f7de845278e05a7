"""Sweeps over buffer and bandwidth, and the published claims beside them."""
