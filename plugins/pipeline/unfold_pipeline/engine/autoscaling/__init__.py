"""Engines that follow the traffic: scaling rules, and a trace replayed under them."""
