"""The verbs ``profile``, ``train``, ``plan`` and ``serve`` of cascades."""
