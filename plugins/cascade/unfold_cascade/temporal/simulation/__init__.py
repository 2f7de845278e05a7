"""Trajectories of cases through stages (I Don't Know and I Confidently Know moves)."""
