"""The plugin registry of the command line; the environment may switch plugins off."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping

from unfoldkit.descriptors import ENTRY_POINT_GROUP
from unfoldkit.registry import Registry, load_registry

DISTRIBUTION = "unfoldkit"


def open_registry(*, builtin_only: bool = False, environment: Mapping[str, str] = os.environ) -> Registry:
    """Load the plugins, except those that ``UNFOLD_DISABLE_PLUGINS=a,b`` names."""
    disabled = [name.strip() for name in environment.get("UNFOLD_DISABLE_PLUGINS", "").split(",") if name.strip()]
    if not builtin_only:
        return load_registry(disabled=disabled)
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    builtin = [point for point in points if point.dist is not None and point.dist.name == DISTRIBUTION]
    return load_registry(disabled=disabled, entry_points=builtin)
