"""Names of what a run holds of a family, beside its tensors."""

from __future__ import annotations

SPACE = "family/space.json"
FRONT = "front.json"
ANSWERS = "answers.npz"
