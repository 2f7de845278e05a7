"""Cascades over time (UnfoldML): entities move through stages hour by hour."""
