"""Each site left out in turn: models and gates are fitted on the others, and the cascade is evaluated on it.

Leave-one-site-out validation (internal-external validation, Steyerberg and Harrell, J Clin Epidemiol 2016) estimates
what a new site may expect. The certificate of the plan itself covers the mixture of the known sites only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from unfold_cascade.data.dataset import Dataset, leave_out_sites
from unfold_cascade.data.splits import leave_out
from unfold_cascade.models.zoo import fit_missing_models
from unfold_cascade.planner.planner import solve
from unfold_cascade.planner.policy import Policy, StagePolicy, follow
from unfold_cascade.planner.problem import Problem
from unfoldkit.api import Run, RunDir

FIT_STEP = "models without a site"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteResult:
    """A cascade at a site that took no part in it.

    Attributes:
        site: The site.
        units: Its cases, or its patients over time.
        loss: Accuracy (or utility, by the costs of errors) lost against the baseline of the other sites, as a share;
            0 if the baseline itself is served.
        saving: Cost of the baseline divided by that of the cascade; ``None`` if it costs nothing.
        is_certified: Whether the other sites certified a cascade.
        utility: Utility of the cascade, over time.
        baseline_utility: Utility of the baseline, over time.
        alerts_per_100h: Its alerts per 100 event-free hours, over time.
    """

    site: str
    units: int
    loss: float
    saving: float | None
    is_certified: bool
    utility: float | None = None
    baseline_utility: float | None = None
    alerts_per_100h: float | None = None


def open_site_run(run: Run, number: int) -> Run:
    """Open the part of a run that stores what is fitted without one site."""
    options = run.options.copy()
    # what is planned without a site is not served, so it is no attempt of the user's ledger
    options.pop("state", None)
    return replace(run, directory=RunDir(run.directory.path / "sites" / str(number)), options=options)


def evaluate_sites(problem: Problem, run: Run) -> tuple[SiteResult, ...]:
    """Leave every site out in turn; empty unless the split asks for it."""
    if problem.data.split.kind != "leave-out":
        return ()
    by_site = leave_out_sites(problem.data, problem.dataset)
    runs = [open_site_run(run, number) for number in range(len(by_site))]
    if not problem.is_recorded:
        # at once: to start workers for each site takes longer than many fits
        splits = [(dataset, each.directory) for dataset, each in zip(by_site.values(), runs, strict=True)]
        fit_missing_models(problem.zoo, problem.data, splits, run, FIT_STEP)
    return tuple(_iterate_results(problem, by_site, runs))


def _iterate_results(problem: Problem, by_site: Mapping[str, Dataset], runs: Sequence[Run]) -> Iterator[SiteResult]:
    for number, ((site, dataset), run) in enumerate(zip(by_site.items(), runs, strict=True)):
        run.log.info("leaving out %s", site)
        run.progress("sites left out", number, len(by_site))
        data = replace(problem.data, split=leave_out(problem.data.split, site), identity=(*problem.data.identity, site))
        without = replace(problem, data=data, dataset=dataset)
        solution = solve(without, run)
        rows, costs = without.dataset.rows.test, solution.tables.error_costs
        labels = without.dataset.labels[rows]
        tables = solution.tables
        if solution.policy is None:
            tables = replace(tables, first_stage=tables.candidates, second_stage={})
        policy = solution.policy or Policy(StagePolicy((solution.baseline.index,), ()), {})
        outcome = follow(tables, policy, rows)
        loss = costs.losses(outcome.answer, labels) - costs.losses(solution.baseline.answer[rows], labels)
        reference = replace(tables, first_stage=tables.candidates, second_stage={})
        alone = follow(reference, Policy(StagePolicy((solution.baseline.index,), ()), {}), rows)
        cost = float(outcome.cost.mean())
        yield SiteResult(
            site=site,
            units=len(rows),
            loss=float(loss.mean()),
            saving=float(alone.cost.mean()) / cost if cost > 0 else None,
            is_certified=solution.policy is not None,
        )
