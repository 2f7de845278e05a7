"""Nodes and tasks from specs, traces and cluster dumps."""
