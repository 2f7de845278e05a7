"""Sockets, limits and processes of a service."""
