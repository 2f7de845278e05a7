"""Runs a plan stage by stage, and keeps it within deadline and budget."""
