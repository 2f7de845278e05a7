"""A real control plane for tests: built once, started as plain processes on loopback."""
