"""Policies that decide where a task may run."""
