"""Which subnet answers which batch (SlackFit and others)."""
