"""The verbs ``train``, ``plan`` and ``serve``; ``build`` resolves a spec once for all of them."""
