"""The verbs ``plan`` and ``serve`` of placements, and the check of input files."""
