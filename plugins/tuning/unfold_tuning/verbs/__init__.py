"""The verbs ``profile``, ``plan`` and ``train`` of tuning jobs."""
