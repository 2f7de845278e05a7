"""The verbs ``plan`` and ``serve`` of placements."""
