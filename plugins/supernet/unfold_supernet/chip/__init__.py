"""A model of an accelerator that keeps shared weights on chip: cycles, traffic, energy, and what to keep there."""
