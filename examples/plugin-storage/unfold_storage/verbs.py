"""What the verbs do."""

from __future__ import annotations

from unfold_storage.spec import StorageSpec
from unfoldkit.api import Metric, Report, Run, Verdict

GIB = 1024**3


def plan(spec: StorageSpec, run: Run) -> Report:
    """Say what the copies cost, and whether the budget allows them."""
    one = spec.size / GIB * spec.price
    price = round(one * spec.copies, 9)
    ok = price <= spec.budget
    run.log.info("one copy costs $%.2f", one)
    headline = f"{spec.copies} copies cost ${price:.2f} a month"
    if not ok:
        headline += f"; ${spec.budget:.2f} allows {int(round(spec.budget / one, 9))}"
    return Report(
        kind="storage",
        verb="plan",
        name=spec.name,
        verdict=Verdict.YES if ok else Verdict.NO,
        question="Does the budget allow these copies?",
        headline=headline,
        metrics={"price": Metric(price, "$", target=f"≤ {spec.budget:g}", ok=ok, label="price a month")},
        decision={"copies": spec.copies, "price": price},
    )
