"""Running engines behind an OpenAI-compatible endpoint: a streaming client, and the measurements of a profile."""
