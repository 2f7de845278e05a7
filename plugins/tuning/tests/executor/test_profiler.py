"""Measured profiles."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import pytest
from tuning_runs import SPEC, profile_spec, read_nodes

from unfold_tuning.cluster.local import LocalCluster
from unfoldkit.api import UnfoldError, Verdict

pytestmark = pytest.mark.usefixtures("sleeper_log")


def test_a_measured_profile_is_near_the_truth(tmp_path: Path) -> None:
    """The profiler measures the 50 ms that an iteration sleeps, and stores a profile that plan can read."""
    report = profile_spec(tmp_path, SPEC)
    assert 0.05 <= (report.metrics["iteration_s"].value or 0) < 0.2
    assert 0 < (report.metrics["checkpoint_s"].value or 0) < 0.1
    assert json.loads((tmp_path / "profile.json").read_text())["speedup"] == {"1": 1.0}


def test_a_profile_costs_what_it_rents(tmp_path: Path) -> None:
    """Node and head count while the profile runs; this machine does not have the price of an instance of AWS."""
    text = SPEC.replace("limit: 3", "head: $3.6/h, limit: 3")
    began = time.monotonic()
    report = profile_spec(tmp_path / "local", text)
    assert 0 < (report.metrics["spent_usd"].value or 0) < 2 * 3.6 / 3600 * (time.monotonic() - began) + 1e-6
    report = profile_spec(tmp_path / "aws", text.replace("provider: local", "provider: aws"))
    assert report.metrics["spent_usd"].value == 0


def test_a_profile_ends_at_the_budget(tmp_path: Path) -> None:
    """The cap holds for the measurement too; with a higher one, the profile continues with its spend."""
    text = SPEC.replace("deadline:", "budget: $0.002\ndeadline:")
    with pytest.raises(UnfoldError, match=r"budget: the profile has used all of it"):
        profile_spec(tmp_path / "run", text)
    spent_usd = sum(((until or since) - since) * 0.001 for _, _, since, _, until in read_nodes(tmp_path, "profile"))
    assert spent_usd >= 0.002
    report = profile_spec(tmp_path / "run", text.replace("$0.002", "$9"))
    assert (report.metrics["spent_usd"].value or 0) > spent_usd


def test_spare_configurations_replace_failed_ones(tmp_path: Path) -> None:
    """Configurations that fail are reported and others replace them, so that eight trials are measured."""
    text = SPEC.replace("sleeper:train", "sleeper:broken").replace("[0, 1]", "[0.3, 1]")
    report = profile_spec(tmp_path, text)
    assert report.verdict is Verdict.YES
    assert "too low" in dict(report.lines)["failed configurations"]
    assert (tmp_path / "profile.json").exists()
    assert report.metrics["steps"].value == 8 * 12


def test_a_configuration_that_ends_its_process_is_replaced(tmp_path: Path) -> None:
    """A killed process, such as one out of memory, costs the profile a configuration, and not all of them."""
    text = SPEC.replace("sleeper:train", "sleeper:deadly").replace("[0, 1]", "[0.3, 1]")
    report = profile_spec(tmp_path, text)
    assert "SIGKILL (out of memory?)" in dict(report.lines)["failed configurations"]
    assert report.metrics["steps"].value == 8 * 12


def test_a_profile_keeps_the_states_that_a_search_needs(tmp_path: Path) -> None:
    """A trial keeps its last state, that before a rung without a score, and what was there before the profile."""
    stages = "[{trials: 8, iters: 4}, {trials: 2, iters: 3}, {trials: 1, iters: 9}]"
    text = re.sub("search: .*", f"search: {{algorithm: custom, stages: {stages}}}", SPEC)
    text = text.replace("limit: 3", "limit: 3, checkpoint_iters: 4")
    earlier = tmp_path / "trials/trial-00001/8.state"
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    profile_spec(tmp_path, text)
    states = {folder.name: sorted(path.stem for path in folder.iterdir()) for folder in (tmp_path / "trials").iterdir()}
    assert states.pop("trial-00001") == ["12", "4", "8"]
    assert list(states.values()) == [["12", "4"]] * 7


def test_a_profile_without_any_trial_is_an_error(tmp_path: Path) -> None:
    """If every configuration fails, the profile ends with the last error."""
    text = SPEC.replace("sleeper:train", "sleeper:broken").replace("[0, 1]", "[0, 0.4]")
    with pytest.raises(UnfoldError, match=r"failed for all of 16 configurations; the last error: .*too low"):
        profile_spec(tmp_path, text)


def test_the_speed_up_across_nodes_is_measured_on_several(tmp_path: Path) -> None:
    """With ``span: 2`` the profile also measures trials of two nodes, apart from the speed-up within one."""
    text = SPEC.replace('"sleeper:train"', '"sleeper:train", span: 2').split("profile:")[0]
    report = profile_spec(tmp_path, text)
    stored = json.loads((tmp_path / "profile.json").read_text())
    assert stored["speedup"] == {"1": 1.0}
    # every rank sleeps half as long
    assert 1.2 < stored["across"]["2"] < 2.5
    assert [row[0] for row in report.tables[0].rows] == [1, 2]


def test_a_profile_without_the_nodes_of_a_span_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If fewer nodes start than a trial spans, the profile ends with an error; it continues when there are more."""
    text = SPEC.replace('"sleeper:train"', '"sleeper:train", span: 2').split("profile:")[0]
    with monkeypatch.context() as patch:
        patch.setattr(
            LocalCluster, "resize", lambda self, _count, watch, resize=LocalCluster.resize: resize(self, 1, watch)
        )
        with pytest.raises(UnfoldError, match=r"cloud: fewer nodes started than a trial of 2 accelerators needs"):
            profile_spec(tmp_path, text)
    assert not (tmp_path / "profile.json").exists()
    report = profile_spec(tmp_path, text)
    assert [row[0] for row in report.tables[0].rows] == [1, 2]
    assert dict(report.lines)["resumed"].startswith("the profile continues after 8 finished measurements")


def test_a_killed_profile_continues(tmp_path: Path, sleeper_log: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After kill -9 no measured trial runs again and the bill goes on; another spec starts from the beginning."""
    text = re.sub("search: .*", "search: {algorithm: random, trials: 8, iters: 2}", SPEC.split("profile:")[0])
    folder, other = tmp_path / "run", tmp_path / "other"
    process = get_context("fork").Process(target=profile_spec, args=(folder, text))
    process.start()
    while process.is_alive() and (not sleeper_log.exists() or sleeper_log.read_text().count("\n") < 9):
        time.sleep(0.01)
    process.kill()
    process.join()
    shutil.copytree(folder, other)
    report = profile_spec(folder, text)
    repeated = [line for line, count in Counter(sleeper_log.read_text().splitlines()).items() if count > 1]
    # only the trial that ran at the kill
    assert len({line.split()[0] for line in repeated}) <= 1
    assert dict(report.lines)["resumed"].startswith("the profile continues after 4 finished measurements")
    assert report.metrics["steps"].value == 16
    lifetimes = read_nodes(tmp_path, "profile")
    assert len(lifetimes) == 2
    assert min(seen - since for _, _, since, seen, _ in lifetimes) > 0.1
    assert json.loads((folder / "unfinished-profile.json").read_text())["measured"] == []
    with pytest.raises(UnfoldError, match="failed for all"):
        profile_spec(other, text.replace("sleeper:train", "sleeper:broken").replace("[0, 1]", "[0, 0.4]"))
    assert "the profile starts over: 4 finished measurements belong to another spec" in caplog.text
