"""Cascades of language models: planned from a log of calls, promised by an exact test, served as a gateway."""
