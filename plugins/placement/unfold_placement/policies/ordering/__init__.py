"""Policies that decide when a task may start."""
