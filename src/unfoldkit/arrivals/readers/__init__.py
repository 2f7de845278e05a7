"""One file a trace format."""
