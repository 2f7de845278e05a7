"""What this plugin offers. Keep it light: it is imported to list the kinds."""

from __future__ import annotations

from collections.abc import Iterable

from unfoldkit.api import Check, Kind, Renderer, hookimpl


@hookimpl
def unfold_kinds() -> Iterable[Kind]:
    """Offer the kind ``placement``."""
    yield Kind(
        name="placement",
        summary="places tasks by policies that you compose or write yourself",
        spec="unfold_placement.schema.placement:PlacementSpec",
        plan="unfold_placement.verbs.plan:plan",
        serve="unfold_placement.verbs.serve:serve",
        examples="unfold_placement:examples",
        extra="placement",
        opens="unfold_placement.verbs.check_inputs:check_inputs",
        verifies="unfold_placement.verbs.verify:verify",
    )


@hookimpl
def unfold_checks() -> Iterable[Check]:
    """Offer the checks of ``unfold doctor --target kubernetes``."""
    yield Check(
        name="kubernetes",
        summary="a controller can run on the cluster",
        action="unfold_placement.verbs.check_cluster:check_cluster",
        target="kubernetes",
    )


@hookimpl
def unfold_renderers() -> Iterable[Renderer]:
    """Offer a plan in the words of Kubernetes."""
    yield Renderer(
        "kubernetes",
        "a placement's roles and controller for Kubernetes",
        "unfold_placement.kubernetes.manifests:export_manifests",
        kind="placement",
    )
