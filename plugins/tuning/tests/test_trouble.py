"""What a trial must not pay for: the end of a process beside it, and a full disk."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_aws import MACHINE
from test_train import SPEC, trained

from unfold_tuning.schema.models import TuningSpec
from unfold_tuning.trial.ledger import opened
from unfold_tuning.trial.worker import answered
from unfold_tuning.verbs.train import train
from unfoldkit.api import ExitCode, Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse


@pytest.fixture(autouse=True)
def _log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEEPER_LOG", str(tmp_path / "log"))


def test_only_the_trial_whose_process_ends_is_given_up(tmp_path: Path) -> None:
    """A trial that takes its node along three times is left out; those that ran beside it are not."""
    text = SPEC.replace("sleeper:train", "sleeper:deadly").replace("accelerators: 1", "accelerators: 2")
    report = trained(tmp_path, text.replace("limit: 3", "limit: 1"))
    told = dict(report.lines)["left out"]
    assert told.startswith("1 trial (")
    assert report.metrics["lost_nodes"].value == 3


def test_a_full_disk_stops_the_run_and_costs_no_trial(tmp_path: Path) -> None:
    """Where checkpoints cannot be written the run ends with an error, and the same command goes on with all trials."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/trials").write_text("in the way of the checkpoints")
    with pytest.raises(UnfoldError, match="make room"):
        trained(tmp_path)
    (tmp_path / "run/trials").unlink()
    report = trained(tmp_path)
    assert report.verdict is Verdict.YES
    assert "left out" not in dict(report.lines)


def test_trials_that_all_failed_try_again_once_their_function_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of which every trial was left out holds no verdict on them: the same command runs all of them again."""
    monkeypatch.setenv("SLEEPER_WRONG", "1")
    text = SPEC.replace("sleeper:train", "sleeper:mended")
    with pytest.raises(UnfoldError, match=r"every trial failed.*mend it, run it again"):
        trained(tmp_path, text)
    monkeypatch.delenv("SLEEPER_WRONG")
    report = trained(tmp_path, text)
    assert report.verdict is Verdict.YES
    assert "left out" not in dict(report.lines)


def _filled(file: Path) -> None:
    """Write to a ledger until there is no room."""
    with opened(file, MACHINE, "a") as ledger:
        ledger.trial_starts(0, [{"x": 1}])
        pages = ledger.base.execute("PRAGMA page_count").fetchone()[0]
        ledger.base.execute(f"PRAGMA max_page_count = {pages}")
        ledger.trial_starts(1, [{"x": "long" * 4096}])


def test_a_ledger_without_room_says_so_and_keeps_what_it_holds(tmp_path: Path) -> None:
    """A write for which the disk has no room ends with code 3 and a way on, and what was written before stays."""
    file = tmp_path / "ledger.sqlite"
    with pytest.raises(UnfoldError, match=r"full.*with room again") as told:
        _filled(file)
    assert told.value.code is ExitCode.INTERNAL
    with opened(file, MACHINE, "a") as ledger:
        assert [len(ledger.trials(bracket)) for bracket in (0, 1)] == [1, 0]


def test_a_file_that_is_no_ledger_is_told_as_such(tmp_path: Path) -> None:
    """What stands in the place of a ledger and is none is named, with code 2."""
    file = tmp_path / "ledger.sqlite"
    file.write_text("no database" * 100)
    with pytest.raises(UnfoldError, match=r"ledger.sqlite: this is no ledger") as told, opened(file, MACHINE, "a"):
        pass
    assert told.value.code is ExitCode.USAGE


def test_a_trial_keeps_its_last_checkpoint_only(tmp_path: Path) -> None:
    """After a run there is one checkpoint of each trial, that of the iterations which it has come to."""
    trained(tmp_path)
    kept = sorted(path.relative_to(tmp_path / "run/trials") for path in (tmp_path / "run/trials").rglob("*.state"))
    assert len({path.parent for path in kept}) == len(kept) == 6
    assert {path.stem for path in kept} == {"2", "6", "12"}


def test_a_trial_whose_checkpoint_is_gone_begins_again(tmp_path: Path) -> None:
    """A checkpoint that somebody removes costs its iterations, not the trial: the configuration that must win wins."""
    report = trained(tmp_path, SPEC.replace("sleeper:train", "sleeper:forgetful"))
    ceilings = [float(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()]
    assert "left out" not in dict(report.lines)
    assert report.metrics["best_metric"].value == pytest.approx(max(ceilings) * (1 - 0.5**12))


def test_what_a_trial_prints_is_not_in_the_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever trials print goes to stderr, so that stdout carries the report only."""
    trained(tmp_path, SPEC.replace("sleeper:train", "sleeper:talking"))
    said = capfd.readouterr()
    assert said.out == ""
    assert "epoch 1" in said.err


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("silent", r"returns \(metric, state\), a number and bytes; this one returned None"),
        ("leaving", "the last said: SystemExit: no data"),
    ],
)
def test_a_function_that_is_no_trainable_is_told_what_it_is_to_return(tmp_path: Path, function: str, told: str) -> None:
    """A function that returns nothing, or ends its process, is told as the spec's mistake, not as a lost node."""
    with pytest.raises(UnfoldError, match=told):
        trained(tmp_path, SPEC.replace("sleeper:train", f"sleeper:{function}"))


@pytest.mark.parametrize(
    ("metric", "state", "told"),
    [(None, b"", "its metric is None"), (0.5, {"epoch": 1}, "its state is {'epoch': 1}"), (b"", 0.5, "its state is")],
)
def test_an_answer_is_a_number_and_bytes(metric: object, state: object, told: str) -> None:
    """An answer in another form is told by what is wrong in it."""
    with pytest.raises(TypeError, match=told):
        answered((metric, state))
    assert answered([np.float32(0.5), bytearray(b"x")]) == (0.5, b"x")


def test_a_function_that_is_not_there_is_the_specs_mistake(tmp_path: Path) -> None:
    """A function that cannot be loaded ends the run at once as a mistake at its key, with exit code 2."""
    with pytest.raises(UnfoldError, match=r"trainable\.function: cannot load 'sleeper:train2'") as told:
        trained(tmp_path, SPEC.replace("sleeper:train", "sleeper:train2"))
    assert told.value.code is ExitCode.USAGE


def test_a_bad_cell_of_a_table_is_told_with_its_place(tmp_path: Path) -> None:
    """A table that a worker cannot read ends the run at once as a mistake in the file, at its line."""
    (tmp_path / "t.csv").write_text("a,target\n1,0\nsoft,1\n")
    given = '{function: "sleeper:train", space: {ceiling: {uniform: [0, 1]}}}'
    with pytest.raises(UnfoldError, match=r"t\.csv:3:1") as told:
        trained(tmp_path, SPEC.replace(given, f"{{estimator: sgd, data: {tmp_path}/t.csv}}"))
    assert told.value.code is ExitCode.USAGE


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"instances": 1, "accelerators_per_trial": 2}, "no trial of 2 accelerators fits on 1 instance of 1"),
        ({"instances": 50}, "50 instances, and cloud.limit is 3"),
        ({"instances": "many"}, 'a whole number of at least 1, not "many"'),
        ({"accelerators_per_trial": 0}, "a whole number of at least 1, not 0"),
    ],
)
def test_an_edited_plan_is_held_to_what_can_be_carried_out(
    tmp_path: Path, change: dict[str, object], told: str
) -> None:
    """A plan that no trial fits, or that asks for more than the limit, is refused before anything is rented."""
    rows = [{"trials": n, "instances": 1, "accelerators_per_trial": 1, "at_a_time": 1} | change for n in (6, 2, 1)]
    plan = {"decision": {"stages": rows, "instance": "p", "market": "on-demand"}}
    spec = validate(
        TuningSpec, parse(SPEC.replace("{mean: 50 ms}", "{mean: 50 ms}, speedup: {1: 1, 2: 1.9}"), "t.yaml")
    )
    run = Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(2), allow_code=True, options={"plan": plan})
    with pytest.raises(UnfoldError, match=told):
        train(spec, run)
    assert not (tmp_path / "run/ledger.sqlite").exists()
