"""Laws of a last stage that waits behind others: what it may lose counts for the whole cascade."""

from __future__ import annotations

import numpy as np
import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in, spec_of
from unfold_cascade.temporal.evaluation.evaluate import outcome, quality
from unfold_cascade.temporal.search.compose import adequate
from unfold_cascade.temporal.search.planner import Searched, searched
from unfoldkit.api import Run

MARGIN = 0.2
GATED = ("stages[1].parallel=false", f"alerts.utility_margin={MARGIN}", f"alerts.auprc_margin={MARGIN}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run for the made-up wards."""
    return run_in(tmp_path_factory.mktemp("wards"))


@pytest.fixture(scope="module")
def found(run: Run) -> Searched:
    """Return what the search found on the made-up wards whose last stage waits behind the first."""
    return searched(spec_of(CONFIGS / "wards.yaml", *GATED), run)


def test_a_cascade_behind_a_gate_loses_no_more_than_its_alerts_may(found: Searched) -> None:
    """Each cascade of the front keeps utility and average precision within the margins, cases held back and all."""
    part, base = found.study.train, found.known.latched_quality
    assert found.front.kept
    for point in found.front.points:
        own = quality(part, outcome(part, point.policy, np.array([False, False]), found.moves, found.study.rates))
        assert own.utility == pytest.approx(point.utility)
        assert own.utility >= base.utility - MARGIN
        assert own.auprc >= base.auprc - MARGIN


def test_where_no_cascade_behind_a_gate_keeps_them_it_is_told(found: Searched, run: Run) -> None:
    """Alarms that keep both when they are watched at every hour do not count for cascades that keep cases back."""
    base = found.known.latched_quality
    lost = [max(base.utility - one.found.utility, base.auprc - one.found.auprc) for one in found.front.watch]
    least = min(lost) + 1e-6
    margins = (f"alerts.utility_margin={least}", f"alerts.auprc_margin={least}")
    again = searched(spec_of(CONFIGS / "wards.yaml", GATED[0], *margins), run)
    assert adequate(again.front.watch, base, again.alerts)
    assert not again.front.kept
    assert again.front.points
