"""Replay of a request trace by a supernet: simulated, measured on this machine, or on the simulated accelerator."""
