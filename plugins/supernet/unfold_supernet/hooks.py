"""Register the kind ``supernet``. Keep this module light: every ``unfold`` command imports it to list the kinds."""

from __future__ import annotations

from collections.abc import Iterable

from unfoldkit.api import Kind, hookimpl


@hookimpl
def unfold_kinds() -> Iterable[Kind]:
    """Offer the kind ``supernet``."""
    yield Kind(
        name="supernet",
        summary="trains many models in one set of weights, serves them or your own under deadlines, plans accelerators",
        spec="unfold_supernet.schema.supernet:SupernetSpec",
        profile="unfold_supernet.verbs.profile:profile",
        train="unfold_supernet.verbs.train:train",
        plan="unfold_supernet.verbs.plan:plan",
        serve="unfold_supernet.verbs.serve:serve",
        examples="unfold_supernet:examples",
        extra="supernet",
        many=True,
        replay=True,
        opens="unfold_supernet.verbs.check_inputs:check_inputs",
    )
