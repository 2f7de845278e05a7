"""The verbs ``train``, ``plan`` and ``serve`` of supernets."""
