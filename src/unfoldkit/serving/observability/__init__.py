"""Access log, metrics and live page."""
