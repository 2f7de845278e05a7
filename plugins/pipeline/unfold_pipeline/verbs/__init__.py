"""The verbs ``profile``, ``plan`` and ``serve`` of pipelines, and the check of their input files."""
