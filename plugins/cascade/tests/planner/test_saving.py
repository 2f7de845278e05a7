"""Laws of the cost of a cascade: it is certified like the loss, on the policy that is served."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import recorded_spec, run_in, spec_of
from unfold_cascade._types import BoolArray, FloatArray
from unfold_cascade.planner.guarantees import compute_cost_tests
from unfold_cascade.planner.saving import CostSample, bound_saving, budget_guarantee, saving_guarantee
from unfold_cascade.verbs import plan
from unfoldkit.api import Report, Verdict

DELTA = 0.05
Confidence = Callable[[np.random.Generator, BoolArray], FloatArray]
WITHOUT_SAVING: dict[str, Confidence] = {
    "anti-informative": lambda rng, right: rng.uniform(0.5, 0.8, right.size) + 0.2 * ~right,
    "inverted": lambda rng, right: rng.uniform(0, 0.5, right.size) + 0.5 * ~right,
    "constant": lambda rng, right: 0.9 + 0 * rng.uniform(size=right.size),
    "slightly inverted": lambda rng, right: np.clip(0.75 - 0.1 * right + 0.15 * rng.normal(size=right.size), 0, 1),
    "coarse": lambda rng, right: np.round(rng.uniform(0.5, 1, right.size) - 0.2 * right, 1),
}


def _plan_log(folder: Path, confidence: Confidence, seed: int, *settings: str, cases: int = 3000) -> Report:
    """Plan a log of a cheap model, 80 % accurate for 1 $, and a big one, 95 % accurate for 20 $."""
    rng = np.random.default_rng([zlib.crc32(folder.name.encode()), seed])
    labels = rng.integers(0, 2, cases)
    right = [rng.random(cases) < accuracy for accuracy in (0.8, 0.95)]
    answers = [np.where(each, labels, 1 - labels) for each in right]
    columns = zip(labels, answers[0], confidence(rng, right[0]), answers[1], rng.uniform(0.5, 1, cases), strict=True)
    lines = [f"{y},{a},{qa:.4f},{b},{qb:.4f}" for y, a, qa, b, qb in columns]
    (folder / "log.csv").write_text("y,a,qa,b,qb\n" + "\n".join(lines) + "\n")
    (folder / "log.yaml").write_text(recorded_spec("anti", "2%").replace("price: 9", "price: 20"))
    return plan(spec_of(folder / "log.yaml", *settings), run_in(folder / f"run-{seed}", base=folder, seed=seed))


@pytest.mark.parametrize("name", WITHOUT_SAVING)
@pytest.mark.parametrize("seed", range(2))
def test_no_cascade_without_a_saving_is_accepted(tmp_path: Path, name: str, seed: int) -> None:
    """A confidence that says nothing, or the opposite, never yields a cascade; none is shown as 1.0x cheaper."""
    report = _plan_log(tmp_path, WITHOUT_SAVING[name], seed)
    assert report.verdict is Verdict.NO
    assert "cheaper," not in report.headline


@pytest.mark.e2e
@pytest.mark.parametrize("name", WITHOUT_SAVING)
def test_no_seed_accepts_a_cascade_without_a_saving(tmp_path: Path, name: str) -> None:
    """The same for thirty seeds of each confidence."""
    verdicts = [_plan_log(tmp_path, WITHOUT_SAVING[name], seed).verdict for seed in range(30)]
    assert verdicts == [Verdict.NO] * 30


def _informative(rng: np.random.Generator, right: BoolArray) -> FloatArray:
    return np.where(right, rng.uniform(0.6, 1.0, right.size), rng.uniform(0.4, 0.8, right.size))


def test_a_saving_is_certified_and_bounded_on_the_test_rows(tmp_path: Path) -> None:
    """An informative confidence saves; the certificate covers the saving, and the test rows bound it from below."""
    report = _plan_log(tmp_path, _informative, 1)
    saving, bound = (float(report.metrics[name].value or 0) for name in ("saving", "saving_lower_bound"))
    assert report.verdict is Verdict.YES
    assert 1.05 < bound < saving
    assert " and saving ≥ 1.05x with 95 % confidence" in dict(report.lines)["certificate"]
    refused = _plan_log(tmp_path, _informative, 1, "goal.min_saving=3x")
    assert refused.verdict is Verdict.NO
    assert "3x" in refused.headline or "relaxation" in refused.headline


@pytest.mark.slow
@pytest.mark.parametrize("is_varied", [False, True])
def test_a_cost_guarantee_fails_at_most_at_delta(is_varied: bool) -> None:
    """A cascade that saves 1.05x at most, or costs the budget at least, passes in at most delta of the draws."""
    rng, passed, bounded = np.random.default_rng(5), np.zeros(2), 0
    draws = 400
    for _ in range(draws):
        tune, fresh = (_draw_costs(rng, n, saving=1.05, is_varied=is_varied) for n in (400, 300))
        mean = 20 / 1.05
        guarantees = saving_guarantee(1.05, [(tune, fresh)]), budget_guarantee(mean, [(tune, fresh)])
        passed += [compute_cost_tests([each], 1, DELTA).certify[0] <= DELTA for each in guarantees]
        bounded += bound_saving(tune, fresh, 1 - DELTA) > 1.05
    limit = draws * DELTA + 3 * np.sqrt(draws * DELTA * (1 - DELTA))
    assert (passed <= limit).all()
    assert bounded <= limit


def test_a_clear_saving_passes_and_an_outlier_refuses() -> None:
    """Power of the test, and what a case more expensive than the bound does to it."""
    rng = np.random.default_rng(6)
    tune, fresh = (_draw_costs(rng, n, saving=1.5, is_varied=True) for n in (400, 250))
    assert compute_cost_tests([saving_guarantee(1.05, [(tune, fresh)])], 1, DELTA).certify[0] < 1e-3
    assert 1.1 < bound_saving(tune, fresh, 0.95) < 1.5
    outlier = CostSample(np.append(fresh.cascade, 1e4), np.append(fresh.baseline, 20.0), np.append(fresh.longest, 1e4))
    assert compute_cost_tests([saving_guarantee(1.05, [(tune, outlier)])], 1, DELTA).certify[0] == 1.0
    assert bound_saving(tune, outlier, 0.95) == 0.0


def _draw_costs(rng: np.random.Generator, n: int, *, saving: float, is_varied: bool) -> CostSample:
    """Draw cases of two models for 1 $ and 20 $, in proportion to a length where prices vary."""
    share = (21 - 20 / saving) / 20
    length = rng.gamma(4, 0.25, n) if is_varied else np.ones(n)
    exits = rng.random(n) < share
    return CostSample(length * np.where(exits, 1.0, 21.0), 20 * length, 21 * length)
