"""Nodes and tasks from specs, traces and dumps of clusters."""
