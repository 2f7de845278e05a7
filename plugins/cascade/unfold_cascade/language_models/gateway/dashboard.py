"""The live page of a gateway: the promise, answers by model, money and time, without a word of prompt or answer."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from unfold_cascade.language_models.gateway.metrics import BUCKETS_S, PREFIX, GatewayMetrics
from unfold_cascade.language_models.gateway.plan import ClientKey, GatewayPlan
from unfold_cascade.language_models.gateway.state import GatewayState
from unfoldkit.format import format_percent
from unfoldkit.serving.observability.dashboard import (
    Breakdown,
    Dashboard,
    DashboardSource,
    Distribution,
    Grid,
    Tile,
    TimeSeries,
    format_short,
    list_samples,
)


def build_dashboard(plan: GatewayPlan, state: GatewayState, metrics: GatewayMetrics) -> DashboardSource:
    """Return a function that reads the current page from the metrics and the state of a gateway."""

    def read() -> Dashboard:
        answers = _sum_by(metrics, "requests_total", "model")
        cost = _sum_by(metrics, "cost_usd_total", "model")
        return Dashboard(
            plan.name,
            "cascade",
            tuple(_list_tiles(plan, state, metrics)),
            (
                TimeSeries("requests by model", "/s", answers, counts=True),
                TimeSeries("cost by model that answered", "$/s", cost, counts=True),
            ),
            (_read_seconds(metrics),),
            (Breakdown("requests by model", "requests", answers),),
            tuple(_list_grids(plan, state)),
        )

    return read


def _list_tiles(plan: GatewayPlan, state: GatewayState, metrics: GatewayMetrics) -> Iterator[Tile]:
    statuses = _sum_by(metrics, "requests_total", "status")
    total, failed = sum(statuses.values()), sum(count for code, count in statuses.items() if code >= "500")
    calls = _sum(metrics, "upstream_calls_total")
    yield _describe_promise(plan, state)
    yield Tile("requests", f"{total:,.0f}", f"{calls:,.0f} upstream calls")
    yield Tile("failed", f"{failed:,.0f}", "status 5xx" if failed else "", failed == 0)
    yield Tile("cost so far", format_short(_sum(metrics, "cost_usd_total")), "$")
    audit = state.audit()
    if plan.promise is not None and plan.promise.audit_limit is not None:
        mean = f"{format_percent(audit.total / audit.audits)} differ" if audit.audits else "none yet"
        yield Tile("audits", f"{audit.audits:,}", f"{mean}, {format_percent(plan.promise.audit_limit)} are promised")
    for name, text in (("missing_confidences", "gated answers"), ("unpriced_calls", "calls of estimated cost")):
        if count := _sum(metrics, f"{name}_total"):
            yield Tile(name.replace("_", " "), f"{count:,.0f}", text, ok=False)


def _describe_promise(plan: GatewayPlan, state: GatewayState) -> Tile:
    if state.is_withdrawn:
        return Tile(
            "promise", "void" if state.void_reason else "revoked", f"all requests go to {plan.reference}", False
        )
    return Tile("promise", "none" if plan.promise is None else plan.promise.text, f"against {plan.reference}")


def _list_grids(plan: GatewayPlan, state: GatewayState) -> Iterator[Grid]:
    if plan.keys:
        now_s = time.time()
        rows = ((key.name, f"{state.spent(key.name_account(now_s)):,.4f}", _format_budget(key)) for key in plan.keys)
        yield Grid("keys", ("key", "spent $", "budget $"), tuple(rows))


def _format_budget(key: ClientKey) -> str:
    if key.budget_usd is None:
        return "–"
    return f"{key.budget_usd:,.2f}" + ("" if key.period is None else f" a {key.period}")


def _read_seconds(metrics: GatewayMetrics) -> Distribution:
    cumulative = [sample.value for sample in list_samples(metrics.registry, f"{PREFIX}seconds_bucket")]
    counts = [upper - lower for lower, upper in itertools.pairwise((0.0, *cumulative))]
    return Distribution("time of a request", "s", BUCKETS_S, counts)


def _sum_by(metrics: GatewayMetrics, name: str, label: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for sample in list_samples(metrics.registry, PREFIX + name):
        sums[sample.labels[label]] = sums.get(sample.labels[label], 0.0) + sample.value
    return sums


def _sum(metrics: GatewayMetrics, name: str) -> float:
    return float(sum(sample.value for sample in list_samples(metrics.registry, PREFIX + name)))
