"""Simulation of entities through the stages, complete or one hour at a time, and its costs."""
