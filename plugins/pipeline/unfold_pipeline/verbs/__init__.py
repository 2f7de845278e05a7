"""The verbs ``profile``, ``plan`` and ``serve`` of pipelines."""
