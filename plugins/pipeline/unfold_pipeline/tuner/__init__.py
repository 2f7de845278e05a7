"""Replica counts at run time: network-calculus rules and the autoscalers beside them."""
