"""The plan alone, as YAML: to review, commit, check in CI and execute."""

from __future__ import annotations

from unfoldkit.errors import user_error
from unfoldkit.io.yaml12 import PLAN_SCHEMA, to_yaml
from unfoldkit.report import Report, to_plain


def render(report: Report) -> str:
    """Return ``plan.yaml``: the decision with the spec, the hashes of what it was made from, seed and versions.

    Raises:
        UnfoldError: the verb leaves no plan.
    """
    if report.decision is None:
        raise user_error(
            f"{report.verb} of kind {report.kind} leaves no plan to write",
            hint="--out with .json, .html, .md or .xml",
        )
    facts = {key: value for key, value in report.provenance.items() if key != "timed"}
    body = {
        "schema": PLAN_SCHEMA,
        "kind": report.kind,
        "name": report.name,
        **facts,
        "decision": report.decision,
    }
    return to_yaml(to_plain(body))
