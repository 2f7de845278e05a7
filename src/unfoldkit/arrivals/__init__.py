"""Arrival processes, traces and traffic envelopes. Everywhere an arrival trace is a sorted float64 array of seconds."""
