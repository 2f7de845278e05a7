"""Kueue's quota admission, replayed: queues, cohorts, flavors, preemption, and what a change of quota changes."""
