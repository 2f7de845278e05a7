"""Laws of the ledger: every attempt on the same data counts once, and shared attempts hold together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import recorded_spec, run_in, spec_of
from tests.support import limited_file_size
from unfold_cascade.planner.certificate import binomial_p_value
from unfold_cascade.planner.ledger import Attempt, _record_for_user, count_attempt, record_attempt, split_confidence
from unfold_cascade.verbs import plan
from unfoldkit.run_context import Options

DIGEST = "ab" * 32


def _attempt(key: str, confidence: float = 0.95) -> Attempt:
    return Attempt(key, confidence, "name", is_issued=True)


def test_an_attempt_counts_once_across_runs(tmp_path: Path) -> None:
    """The same plan again is no new attempt; another goal in another run is; other data start anew."""
    options = Options(state=str(tmp_path / "state"))
    runs = [run_in(tmp_path / name, options=options) for name in ("one", "two")]
    counts = [
        record_attempt(_attempt(key), DIGEST, 1, run) for key, run in zip("aabbc", (*runs, *runs, runs[1]), strict=True)
    ]
    assert [count.number for count in counts] == [1, 1, 2, 2, 3]
    assert [count.joint_confidence for count in counts] == pytest.approx([0.95, 0.95, 0.9, 0.9, 0.85])
    assert record_attempt(_attempt("d"), "cd" * 32, 1, run_in(tmp_path / "three", options=options)).number == 1


def test_other_data_in_the_same_run_start_anew(tmp_path: Path) -> None:
    """A run that is recalibrated on local data counts their attempts only, also without a folder of the user."""
    run = run_in(tmp_path / "run")
    counts = [record_attempt(_attempt(key), digest, 1, run) for key, digest in (("a", DIGEST), ("b", "cd" * 32))]
    assert [(count.number, count.joint_confidence) for count in counts] == [(1, pytest.approx(0.95))] * 2
    assert record_attempt(_attempt("c"), DIGEST, 1, run).number == 2


def test_a_damaged_or_unwritable_ledger_does_not_stop_a_plan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A cut line is skipped, and a state folder that is a file is logged."""
    options = Options(state=str(tmp_path / "state"))
    record_attempt(_attempt("a"), DIGEST, 1, run_in(tmp_path / "one", options=options))
    path = tmp_path / "state" / "certificates" / f"{DIGEST}.jsonl"
    path.write_bytes(path.read_bytes() + b'{"key": "b", "conf\n[1]\n\xff\n')
    assert record_attempt(_attempt("c"), DIGEST, 1, run_in(tmp_path / "two", options=options)).number == 2
    (tmp_path / "file").write_text("")
    run = run_in(tmp_path / "three", options=Options(state=str(tmp_path / "file")))
    assert record_attempt(_attempt("a"), DIGEST, 1, run).number == 1
    assert "was not written" in caplog.text


def test_a_line_that_a_full_disk_cut_spoils_no_later_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A cut line is logged when it happens; the attempt after it counts, so that no promise is too strong."""
    options = Options(state=str(tmp_path / "state"))
    record_attempt(_attempt("a"), DIGEST, 1, run_in(tmp_path / "one", options=options))
    path = tmp_path / "state" / "certificates" / f"{DIGEST}.jsonl"
    run = run_in(tmp_path / "two", options=options)
    with limited_file_size(path.stat().st_size + 9):
        _record_for_user(path, _attempt("b"), run)
    assert "was not written" in caplog.text
    record_attempt(_attempt("c"), DIGEST, 1, run_in(tmp_path / "three", options=options))
    assert record_attempt(_attempt("d"), DIGEST, 1, run_in(tmp_path / "four", options=options)).number == 3


def test_a_report_counts_its_attempts(tmp_path: Path) -> None:
    """Re-planning with another goal is the second attempt; shared attempts are certified with more confidence each."""
    rng = np.random.default_rng(1)
    rows = [f"{y},{y if rng.random() < 0.9 else 1 - y},{rng.random():.4f},{y},0.9" for y in rng.integers(0, 2, 400)]
    (tmp_path / "log.csv").write_text("y,a,qa,b,qb\n" + "\n".join(rows) + "\n")
    (tmp_path / "log.yaml").write_text(recorded_spec("tried", "20%"))
    run = run_in(tmp_path / "run", base=tmp_path)
    lines = [
        dict(plan(spec_of(tmp_path / "log.yaml", *settings), run).lines)
        for settings in ((), (), ("goal.max_loss=25%",), ("goal.attempts=20",))
    ]
    assert [line["attempt"].split(" ")[0] for line in lines] == ["1", "1", "2", "3"]
    assert "hold together with 90 % confidence" in lines[2]["attempt"]
    assert "with 99.75 % confidence" in lines[3]["certificate"]


@pytest.mark.parametrize(("is_shared", "low", "high"), [(True, 0.0, 0.05), (False, 0.2, 1.0)])
def test_a_thousand_analysts_who_try_twenty_plans(is_shared: bool, low: float, high: float) -> None:
    """With goal.attempts: 20 at most 5 % of analysts hold a false certificate; without it far more do.

    Each analyst re-plans on one certification split until a cascade passes. The cascades share half of their decisions,
    and each truly loses as much as is just not allowed.
    """
    rng, cases, epsilon, attempts = np.random.default_rng(7), 400, 0.05, 20
    delta = 1 - (split_confidence(0.95, attempts) if is_shared else 0.95)
    passing = max((k for k in range(cases) if binomial_p_value(k, cases, epsilon) <= delta), default=-1)
    false = 0
    for _ in range(1000):
        common = rng.random(cases) < epsilon
        tried = np.where(rng.random((attempts, cases)) < 0.5, common, rng.random((attempts, cases)) < epsilon)
        false += bool((tried.sum(axis=1) <= passing).any())
    assert low <= false / 1000 <= high


def test_the_count_ignores_what_came_later() -> None:
    """An earlier attempt keeps its number and its joint confidence."""
    entries = [_attempt("a"), _attempt("b", 0.99), _attempt("c")]
    count = count_attempt(entries, entries[1], 1)
    assert (count.number, round(count.joint_confidence, 9)) == (2, 0.94)
    assert count_attempt(entries, replace(entries[0], key="z"), 5).number == 4
