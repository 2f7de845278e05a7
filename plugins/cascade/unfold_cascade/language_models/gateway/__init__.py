"""The OpenAI-compatible gateway of a plan."""
