"""Replay, metrics, audit and static checks of a policy."""
