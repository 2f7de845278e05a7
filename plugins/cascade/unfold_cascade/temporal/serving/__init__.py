"""Stateful serving: the server stores the stage of each entity between requests."""
