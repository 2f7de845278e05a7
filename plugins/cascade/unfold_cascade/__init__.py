"""Cascades of models: which ones are worth running for this case, at this moment (UnfoldML).

``CascadeClassifier`` is the classifier for scikit-learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unfold_cascade.classifier import CascadeClassifier

__all__ = ["CascadeClassifier"]


def __getattr__(name: str) -> Any:
    """Import the classifier at its first use: scikit-learn loads slowly.

    Raises:
        AttributeError: The package has no such name.
    """
    if name != "CascadeClassifier":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from unfold_cascade.classifier import CascadeClassifier

    return CascadeClassifier
