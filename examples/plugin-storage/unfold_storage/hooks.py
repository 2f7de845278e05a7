"""What this plugin offers. Keep it light: it is imported to list the kinds."""

from __future__ import annotations

from collections.abc import Iterable

from unfoldkit.api import Kind, hookimpl


@hookimpl
def unfold_kinds() -> Iterable[Kind]:
    """Offer the kind ``storage``."""
    yield Kind(
        name="storage",
        summary="says how many copies of a data set a budget allows",
        spec="unfold_storage.spec:StorageSpec",
        plan="unfold_storage.verbs:plan",
        examples="unfold_storage:examples",
    )
