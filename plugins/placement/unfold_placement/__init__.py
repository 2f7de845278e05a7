"""Scheduler policies that applications write themselves, from named resources that come and go on nodes."""
