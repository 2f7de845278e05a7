"""Cascades over time: cases that are seen hour after hour, and keep their stage."""
