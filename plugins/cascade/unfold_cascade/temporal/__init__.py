"""Cascades over time (UnfoldML): stages, trajectories, alarms."""
