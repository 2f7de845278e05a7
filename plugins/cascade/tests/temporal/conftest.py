"""One trained run of the shipped wards for all tests over time; a test that changes the run copies it first."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in, spec_of
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.models.study import fit_study
from unfold_cascade.temporal.search.planner import SearchResult, search_cascades
from unfold_cascade.verbs import temporal
from unfoldkit.api import Report, Run


@dataclass(frozen=True, slots=True)
class TrainedWards:
    """The spec, its run, and the report of training."""

    spec: CascadeSpec
    run: Run
    report: Report


@pytest.fixture(scope="session")
def wards(tmp_path_factory: pytest.TempPathFactory) -> TrainedWards:
    """Train the shipped wards once."""
    spec, run = spec_of(CONFIGS / "wards.yaml"), run_in(tmp_path_factory.mktemp("wards"))
    return TrainedWards(spec, run, temporal.train(spec, run))


@pytest.fixture(scope="session")
def search(wards: TrainedWards) -> SearchResult:
    """Search the wards once."""
    return search_cascades(fit_study(build_temporal_problem(wards.spec, wards.run), wards.run))
