"""Carries a plan out, stage by stage."""
