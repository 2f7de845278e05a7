"""Each site left out in turn, over time: fitted and certified on the other sites, evaluated on its patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unfold_cascade.planner.left_out_sites import SiteResult, leave_out, open_site_run
from unfold_cascade.temporal.data.labels import load_hours
from unfold_cascade.temporal.models.study import fit_study
from unfold_cascade.temporal.problem import TemporalProblem
from unfold_cascade.temporal.search.planner import Solution, solve
from unfoldkit.api import Run


def evaluate_patient_sites(problem: TemporalProblem, run: Run) -> tuple[SiteResult, ...]:
    """Leave every site out in turn; empty unless the split asks for it."""
    if problem.split.kind != "leave-out":
        return ()
    sites: Sequence[str] = load_hours(run).sites
    results = []
    for number, site in enumerate(sites):
        run.log.info("leaving out %s", site)
        without = replace(problem, split=leave_out(problem.split, site))
        results.append(_measure(site, solve(fit_study(without, open_site_run(run, number)))))
    return tuple(results)


def _measure(site: str, solution: Solution) -> SiteResult:
    is_certified, latched = solution.selection.is_certified, solution.latched.quality
    served = solution.cascade.quality if is_certified else latched
    currency = solution.problem.cost.currency
    cost = served.bill[currency]
    return SiteResult(
        site=site,
        units=solution.study.test.entities,
        loss=served.loss - latched.loss,
        saving=latched.bill[currency] / cost if cost > 0 else None,
        is_certified=is_certified,
        utility=served.utility,
        baseline_utility=latched.utility,
        alerts_per_100h=served.alerts,
    )
