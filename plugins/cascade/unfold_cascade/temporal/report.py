"""The report of a cascade over time: the answer, the reasons, the next command."""

from __future__ import annotations

from typing import Any

import numpy as np

from unfold_cascade.temporal.evaluation.bootstrap import Interval
from unfold_cascade.temporal.search.planner import Findings, Judged, part_names
from unfold_cascade.temporal.search.select import savings
from unfold_cascade.temporal.simulation.policy import Step
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Run, Series, Table, Verdict

NOTIONS = ("price", "flops", "latency")


def tell(found: Findings, run: Run, verb: str) -> Report:
    """Return the report; every figure is from the test patients unless its name says otherwise."""
    return Report(
        kind="cascade",
        verb=verb,
        name=found.study.spec.name,
        verdict=Verdict.YES if found.choice.promised else Verdict.NO,
        headline=_headline(found, run),
        subtitle=_subtitle(found),
        metrics=_metrics(found),
        tables=(_policies(found), _warnings(found), _route(found), *_owned(found), _alarms(found)),
        figures=(_figure(found),),
        lines=_lines(found),
        next=_next(found, run),
        decision=_decision(found),
        provenance={"inputs": {"data": found.study.digest}},
    )


def _next(found: Findings, run: Run) -> str:
    if found.choice.promised:
        return f"unfold serve {run.directory.word}"
    return f"unfold plan {run.directory.word} --set goal.max_loss={_relaxed(found):g}%"


def _relaxed(found: Findings) -> float:
    """Return the smallest promise, in points, that could be certified."""
    return float(np.ceil(found.choice.certified * 1000) / 10)


def _metrics(found: Findings) -> dict[str, Metric]:
    own, base = found.cascade.found, found.latched.found
    warns, other = found.cascade.warns, found.latched.warns
    fair = savings(base.bill, own.bill, NOTIONS)
    naive = savings(found.argmax.found.bill, found.naive_cascade.found.bill, NOTIONS)
    single = savings(base.bill, found.single.found.bill, NOTIONS)
    tuned = savings(base.bill, found.tuned.found.bill, NOTIONS)
    figures = {
        "price_saving": (fair.get("price"), "x"),
        "flops_saving": (fair.get("flops"), "x"),
        "naive_price_saving": (naive.get("price"), "x"),
        "naive_flops_saving": (naive.get("flops"), "x"),
        "loss_points": (100 * (own.loss - base.loss), "points"),
        "loss_points_low": (100 * found.sure.loss[0], "points"),
        "loss_points_high": (100 * found.sure.loss[1], "points"),
        "loss_points_interval": (50 * (found.sure.loss[1] - found.sure.loss[0]), "points"),
        "naive_loss_points": (100 * (found.naive_cascade.found.loss - found.argmax.found.loss), "points"),
        "tuned_price_saving": (tuned.get("price"), "x"),
        "tuned_flops_saving": (tuned.get("flops"), "x"),
        "tuned_loss_points": (100 * (found.tuned.found.loss - base.loss), "points"),
        "certified_loss_points": (100 * found.choice.certified, "points"),
        "lead_hours_gain": (warns.lead - other.lead, "h"),
        "lead_hours_gain_low": (found.lead_gain[0], "h"),
        "lead_hours_gain_high": (found.lead_gain[1], "h"),
        "lead_hours": (warns.lead, "h"),
        "auprc": (own.auprc, ""),
        "auprc_baseline": (base.auprc, ""),
        "auroc": (own.auroc, ""),
        "auroc_baseline": (base.auroc, ""),
        "utility": (own.utility, ""),
        "utility_baseline": (base.utility, ""),
        "macro_f1": (own.macro_f1, ""),
        "macro_f1_baseline": (base.macro_f1, ""),
        "accuracy": (1 - own.loss, ""),
        "accuracy_baseline": (1 - base.loss, ""),
        "alerts_per_100h": (own.alerts, ""),
        "alerts_per_100h_low": (warns.alerts_interval[0], ""),
        "alerts_per_100h_high": (warns.alerts_interval[1], ""),
        "alerts_per_100h_baseline": (base.alerts, ""),
        "alerts_per_100h_baseline_low": (other.alerts_interval[0], ""),
        "alerts_per_100h_baseline_high": (other.alerts_interval[1], ""),
        "cheapest_single_price_saving": (single.get("price"), "x"),
        "cheapest_single_flops_saving": (single.get("flops"), "x"),
        "cheapest_single_utility": (found.single.found.utility, ""),
        "cheapest_single_auprc": (found.single.found.auprc, ""),
        "price_per_hour": (own.bill["price"], ""),
        "price_per_hour_baseline": (base.bill["price"], ""),
    }
    metrics = {name: Metric(_clean(value), unit) for name, (value, unit) in figures.items()}
    return (
        metrics
        | {"latency_saving": Metric(_clean(fair.get("latency")), "x", timed=True)}
        | _sure(found)
        | _others(found)
        | _promise(found)
    )


def _sure(found: Findings) -> dict[str, Metric]:
    """Return the ends of the intervals of what changes against the latched monolith."""
    names = ("utility", "auprc", "auroc", "macro_f1")
    ends = {
        (name, end): getattr(found.sure, name)[place] for name in names for place, end in enumerate(("low", "high"))
    }
    return {f"{name}_change_{end}": Metric(_clean(value)) for (name, end), value in ends.items()}


def _others(found: Findings) -> dict[str, Metric]:
    """Return what the cascade loses and saves against each other monolith."""
    made: dict[str, Metric] = {}
    for rival in found.others:
        less = savings(rival.found.bill, found.cascade.found.bill, NOTIONS)
        loss = 100 * (found.cascade.found.loss - rival.found.loss)
        made |= {f"{rival.name}_loss_points": Metric(loss, "points")}
        made |= {f"{rival.name}_{name}_saving": Metric(_clean(less.get(name)), "x") for name in NOTIONS[:2]}
    return made


def _promise(found: Findings) -> dict[str, Metric]:
    goal = found.study.spec.goal
    if goal.max_loss is None:
        return {}
    value = round(100 * found.choice.certified, 9)
    target = f"≤ {goal.max_loss * 100:g}"
    return {"certified_loss_points": Metric(value, "points", target=target, ok=found.choice.promised)}


def _clean(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _policies(found: Findings) -> Table:
    columns = (
        Column("policy"),
        Column("accuracy", "%", 2),
        Column("macro F1", "", 3),
        Column("utility", "", 3),
        Column("AUPRC", "", 3),
        Column("alerts", "per 100 h", 1),
        Column("price", "x less", 1),
        Column("FLOPs", "x less", 1),
    )
    rivals = (
        ("monolith, argmax", found.argmax),
        ("monolith, latched", found.latched),
        *((f"monolith, latched: {rival.name}", rival) for rival in found.others),
        *((f"{what}: {alone.name}", alone) for what, alone in _alone(found)),
        ("cascade, against argmax", found.naive_cascade),
        ("cascade, against latched, tuned only", found.tuned),
        ("cascade, against latched", found.cascade),
    )
    rows = tuple(_policy_row(found, name, judged) for name, judged in rivals)
    return Table("policies", columns, rows, len(rows) - 1)


def _alone(found: Findings) -> list[tuple[str, Judged]]:
    """Return the cheapest model and chain of the last stage that warn well enough; once if they are one."""
    both = [("one model alone", found.single), ("last stage alone", found.one_stage)]
    single, chain = found.single, found.one_stage
    return both[:1] if (single.name, single.policy) == (chain.name, chain.policy) else both


def _policy_row(found: Findings, name: str, judged: Judged) -> tuple[Cell, ...]:
    own, base = judged.found, found.latched.found.bill
    less = savings(base, own.bill, NOTIONS)
    knows = judged is not found.single and judged is not found.one_stage
    stage = (100 * (1 - own.loss), own.macro_f1) if knows else (None, None)
    return (name, *stage, own.utility, _clean(own.auprc), own.alerts, less.get("price"), less.get("flops"))


def _warnings(found: Findings) -> Table:
    """Return how each policy warns: alerts with its cut from tuning, lead time at exactly one rate."""
    columns = (
        Column("warnings"),
        Column("AUROC", "", 3),
        Column("alerts", "per 100 h", 2),
        Column("from", "", 2),
        Column("to", "", 2),
        Column("lead at one rate", "h", 1),
        Column("caught", "%", 1),
    )
    rivals = (found.latched, *found.others, *(judged for _, judged in _alone(found)), found.cascade)
    rows = tuple(
        (
            one.name,
            _clean(one.found.auroc),
            one.warns.alerts,
            *one.warns.alerts_interval,
            _clean(one.warns.lead),
            _clean(100 * one.warns.caught),
        )
        for one in rivals
    )
    return Table("warnings", columns, rows, len(rows) - 1)


def _route(found: Findings) -> Table:
    columns = (
        Column("stage"),
        Column("model"),
        Column("asked", "% of hours", 1),
        Column("stays below", "", 3),
        Column("moves on from", "", 3),
        Column("answers", "% of hours", 1),
        Column("a call", "FLOPs", 0),
    )
    rows: list[tuple[Cell, ...]] = []
    asked = found.cascade.done.walk.asked
    for s, step in enumerate(found.choice.point.policy):
        rows += _step_rows(found, found.study.spec.stages[s].name, step, asked[:, s])
    return Table("route", columns, tuple(rows))


def _step_rows(found: Findings, stage: str, step: Step, asked: np.ndarray) -> list[tuple[Cell, ...]]:
    spans = (*step.spans, (step.cut, step.cut))
    rows: list[tuple[Cell, ...]] = []
    for position, (model, (lo, hi)) in enumerate(zip(step.chain, spans, strict=True)):
        share = [100 * float(mask.mean()) for mask in (asked > position, asked == position + 1)]
        name = found.study.models[model].split("/", 1)[1]
        flops = _clean(float(found.study.rates.flops[model]))
        rows.append((stage, name, share[0], _cut(lo), _cut(hi), share[1], flops))
    return rows


def _owned(found: Findings) -> list[Table]:
    """Return the gates that have other cuts where the next model would buy nothing, if there are any."""
    columns = (Column("where the next costs no purchase"), Column("stays below", "", 3), Column("moves on from", "", 3))
    rows: list[tuple[Cell, ...]] = []
    for stage, step in zip(found.study.spec.stages, found.choice.point.policy, strict=True):
        names = [found.study.models[model].split("/", 1)[1] for model in step.chain]
        for k, (lo, hi) in enumerate(step.owned):
            if (lo, hi) != step.spans[k]:
                rows.append((f"{stage.name}: {names[k]} → {names[k + 1]}", _cut(lo), _cut(hi)))
    return [Table("owned", columns, tuple(rows))] if rows else []


def _cut(value: float) -> float | None:
    return value if 0.0 < value < 1.0 else None


def _alarms(found: Findings) -> Table:
    """Return what was tried for the last stage, on the tuning patients: of each chain the cuts of most utility."""
    columns = (
        Column("last stage, tuning patients"),
        Column("utility", "", 3),
        Column("AUPRC", "", 4),
        Column("price", "x less", 1),
        Column("FLOPs", "x less", 1),
    )
    base = found.latched.found.bill
    singles = [one for one in found.front.watch if len(one.step.chain) == 1]
    longer = [one for one in found.front.watch if len(one.step.chain) > 1]
    best = {one.step.chain: one for one in sorted(longer, key=lambda one: one.found.utility)}
    rows = []
    for one in [*singles, *sorted(best.values(), key=lambda one: -one.found.utility)[:4]]:
        less = savings(base, one.found.bill, NOTIONS)
        names = " → ".join(found.study.models[model].split("/", 1)[1] for model in one.step.chain)
        rows.append((names, one.found.utility, _clean(one.found.auprc), less.get("price"), less.get("flops")))
    return Table("alarms", columns, tuple(rows))


def _figure(found: Findings) -> Figure:
    points = found.front.points
    tuned = tuple(100 * (1 - point.loss) for point in points)
    cost = tuple(point.cost for point in points)
    series = (
        Series("on the tuning patients", cost, tuned, "steps"),
        Series("chosen, tuning patients", (found.choice.point.cost,), (100 * (1 - found.choice.point.loss),), "points"),
    )
    title = f"{found.study.spec.name}: accuracy and cost of {len(points)} cascades"
    return Figure("front", title, "cost of a case-hour, share of the monolith's", "accuracy %", series, log_x=True)


def _lines(found: Findings) -> tuple[tuple[str, str], ...]:
    own, base, sure = found.cascade.found, found.latched.found, found.sure
    warns, other = found.cascade.warns, found.latched.warns
    loss = f"{100 * (own.loss - base.loss):+.2f} points {_range(sure.loss, 100)} against the latched monolith"
    kept = f"utility {own.utility - base.utility:+.3f} {_range(sure.utility)}, AUPRC "
    kept += f"{own.auprc - base.auprc:+.4f} {_range(sure.auprc)}"
    early = f"{warns.lead:.1f} h against {other.lead:.1f} h at exactly {found.rate:g} alerts per 100 h: "
    early += f"{warns.lead - other.lead:+.2f} h {_range(found.lead_gain)}; "
    early += f"caught {warns.caught:.0%} against {other.caught:.0%}"
    lines = [
        ("certificate", _certificate(found)),
        ("loss", loss),
        ("kept", kept + ("" if found.front.kept else "; no alarm kept both on the tuning patients")),
        ("lead", early),
        ("saving", f"price {_range(sure.price_saving)}x, FLOPs {_range(sure.flops_saving)}x"),
        ("split", _split(found)),
    ]
    return tuple(lines)


def _range(interval: Interval, factor: float = 1.0) -> str:
    return f"[{factor * interval[0]:.3g}, {factor * interval[1]:.3g}]"


def _certificate(found: Findings) -> str:
    choice, goal = found.choice, found.study.spec.goal
    who = f"the average patient's loss against the latched monolith ≤ {100 * choice.certified:.2g} points"
    text = f"{who} with {goal.confidence:.0%} confidence ({choice.cases:,} patients, {choice.method} test)"
    if choice.promised or goal.max_loss is None:
        return text
    return f"{text}; {choice.cases:,} patients cannot certify ≤ {100 * goal.max_loss:g}"


def _split(found: Findings) -> str:
    sizes = {name: len(part.clock.starts) - 1 for name, part in part_names(found.study)}
    tuned = f"tuned on {sizes['train']:,} patients, out of fold"
    return f"{tuned}; certified on {sizes['calibrate']:,}; figures from {sizes['test']:,} more"


def _headline(found: Findings, run: Run) -> str:
    own, base = found.cascade.found, found.latched.found
    less = savings(base.bill, own.bill, NOTIONS)
    shown = " and ".join(f"{less[n]:.1f}x less {n if n == 'price' else 'FLOPs'}" for n in NOTIONS[:2] if n in less)
    loss = 100 * (own.loss - base.loss)
    text = f"{shown} at {loss:+.2f} points"
    if found.choice.promised:
        return f"{text} · saved in {run.directory.path}"
    return f"{text}, not certified; smallest relaxation: max_loss: {_relaxed(found):g}% · saved in {run.directory.path}"


def _subtitle(found: Findings) -> tuple[str, ...]:
    whole = found.study
    parts = [part for _, part in part_names(whole)]
    hours = sum(len(part.highest) for part in parts)
    patients = sum(len(part.clock.starts) - 1 for part in parts)
    return f"{len(whole.stages)} stages", f"{len(whole.models) - 1} models", f"{patients:,} cases", f"{hours:,} hours"


def _decision(found: Findings) -> dict[str, Any]:
    names = [stage.name for stage in found.study.spec.stages]
    policies = {"cascade": found.choice.point.policy, "against_argmax": found.naive.point.policy}
    goal = found.study.spec.goal.model_dump(mode="json", exclude_none=True)
    moves = found.study.spec.moves.model_dump(mode="json") if found.study.spec.moves else None
    common = {"goal": goal, "moves": moves, "promised": found.choice.promised, "alerts_per_100h": found.rate}
    rule = found.rule
    base = {"cut": _finite(rule.policy[-1].cut), "stages": [float(cut) for cut in rule.cuts or ()]}
    return (
        common
        | {"monolith": base}
        | {
            key: [_step(found, name, step) for name, step in zip(names, policy, strict=True)]
            for key, policy in policies.items()
        }
    )


def _step(found: Findings, stage: str, step: Step) -> dict[str, Any]:
    spans, owned = ([[_finite(lo), _finite(hi)] for lo, hi in some] for some in (step.spans, step.owned))
    models = [found.study.models[model].split("/", 1)[1] for model in step.chain]
    told = {"stage": stage, "models": models, "unsure": spans, "cut": _finite(step.cut)}
    return told | ({"unsure_owned": owned} if owned else {})


def _finite(value: float) -> float | str:
    return float(value) if np.isfinite(value) else ("always" if value < 0 else "never")
