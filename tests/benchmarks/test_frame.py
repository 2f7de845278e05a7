"""The frame of the benchmarks keeps its contract."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import frame, startup
from benchmarks.__main__ import main
from docs.generators import benchmarks as page


def test_a_benchmark_is_a_module_with_run(tmp_path: Path) -> None:
    """Discovery takes the modules that define `run`, under their name with dashes, and nothing else."""
    (tmp_path / "two_words.py").write_text("def run(): ...\n", "utf-8")
    (tmp_path / "helper.py").write_text("def walk(): ...\n", "utf-8")
    (tmp_path / "_hidden.py").write_text("def run(): ...\n", "utf-8")
    assert frame.names(tmp_path) == ["two-words"]


def test_without_a_name_the_list_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The list names each benchmark with its subject."""
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == frame.names()
    assert all(len(line.split()) > 3 for line in lines)


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown name ends with 2 and lists the valid ones."""
    with pytest.raises(SystemExit) as ended:
        main(["nonesuch"])
    assert ended.value.code == 2
    assert "startup" in capsys.readouterr().err


def test_no_time_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """A benchmark that was not started for want of time is named as not run."""
    assert main(["--all", "--quick", "--seconds", "-1"]) == 0
    out = capsys.readouterr().out
    assert out.count("NOT RUN: out of time") == len(frame.names())


def test_a_shuffled_run_has_an_order_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """A bounded run would otherwise always leave out the same ones."""
    orders = []
    for seed in ("1", "1", "2"):
        assert main(["--all", "--quick", "--seconds", "-1", "--shuffle", seed]) == 0
        orders.append([line.split()[0] for line in capsys.readouterr().out.splitlines()])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == frame.names()


def test_the_last_line_is_one_json_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a benchmark prints, stdout ends with one object: name, metrics, peers, machine, versions, notes."""
    monkeypatch.setattr(startup, "run", talking)
    assert main(["startup", "--quick", "--seed", "3"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["name"], found["seed"], found["quick"]) == ("startup", 3, True)
    assert found["metrics"] == {"seed": 3}
    assert {"peers", "machine", "versions", "notes"} <= set(found)


def talking(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    sys.stdout.write("not an object\n")
    return {"metrics": {"seed": seed}}


@pytest.mark.e2e
def test_startup_measures_whole_processes() -> None:
    """Help takes longer than a bare interpreter and loads fewer modules than Typer alone would."""
    found = startup.measured(rounds=1)
    assert found["metrics"]["help_ms"] > found["peers"]["bare interpreter"]["help_ms"]
    assert found["metrics"]["check_ms"] == max(row["check_ms"] for row in found["tables"]["check"])
    words = [sys.executable, "-c", "import sys, typer; print(len(sys.modules))"]
    typer_alone = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert 0 < found["metrics"]["modules_at_help"] < typer_alone


def test_a_missing_folder_of_data_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A benchmark that requires data is not run without it, and reports what it needs."""
    monkeypatch.setenv("UNFOLD_SHARED", str(tmp_path))
    monkeypatch.setattr(startup, "run", needing)
    with pytest.raises(frame.NeedsDataError, match="UNFOLD_SHARED"):
        frame.measure("startup", quick=True, seed=0)
    (tmp_path / "data").mkdir()
    assert frame.measure("startup", quick=True, seed=0)["metrics"] == {"files": 0}


def needing(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    return {"metrics": {"files": len(list(data.iterdir()))}}


def test_a_failing_command_is_no_time() -> None:
    """A process that fails raises instead of giving a time."""
    with pytest.raises(subprocess.CalledProcessError):
        startup.milliseconds([sys.executable, "-c", "raise SystemExit(1)"])


def test_tables_show_metrics_beside_peers(tmp_path: Path) -> None:
    """A result becomes a table with a column for us, one a peer, and the target; a missing value is a dash."""
    (tmp_path / "some.py").write_text('"""About some.\n\nMore."""\n\n\ndef run(): ...\n', "utf-8")
    assert "Not measured yet" in page.section(tmp_path, "some")
    data = {
        "name": "some", "quick": False, "seed": 0, "metrics": {"a": 1234.5, "b": None}, "peers": {"other": {"a": 2}},
        "aims": {"a": "< 1"}, "machine": {"cores": 2}, "versions": {"p": "1"},
    }  # fmt: skip
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "some.json").write_text(json.dumps(data), "utf-8")
    text = page.section(tmp_path, "some")
    for line in ("| `a` |  | 1,234 | 2 | < 1, **missed** |", "| `b` |  | – | – |  |", "benchmarks/results/some.json"):
        assert line in text
    pages = page.pages(tmp_path)
    assert "All were measured on 2 cores, p 1, full run, seed 0.\n" in pages["docs/benchmarks/serving.md"]
    assert "measured on" not in pages["docs/benchmarks/tuning.md"]
    index = pages["docs/benchmarks/index.md"]
    assert "1 of 1 targets are missed" in index
    assert "| [some](serving.md#some) | `a` | 1,234 | < 1 |  |" in index


@pytest.mark.parametrize(
    ("value", "target", "missed"),
    [
        (5, "≤ 5", False), (5.1, "<= 5", True), (1 + 1e-15, "≤ 1", False), (5, "< 5", True), (5, ">= 5", False),
        (4.9, "≥ 5", True), (0, "0", False), (1, "0", True), (999, "1,000", True), (93.1, "90–97", False),
        (98, "90–97", True), (2e7, "≥ 1e7", False), (2e-5, "≤ 1e-5", True), (49, "≥ 50 of 52", True),
        (0.3, "≤ .3", False), (3.0, "≥ 2.85, or 4.67 points", False), (None, "0", False),
    ],
)  # fmt: skip
def test_a_missed_target_is_found(value: float | None, target: str, missed: bool) -> None:
    """A figure is compared with its target in each form that the results use; an absent figure misses nothing."""
    assert page.is_missed(value, target) is missed


def test_a_missing_peer_names_the_group_that_brings_it(tmp_path: Path) -> None:
    """A benchmark without an installed peer reports the dependency group, the extra, or the package."""
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(
        '[project.optional-dependencies]\nray = ["ray[serve]>=2"]\n[dependency-groups]\nbench = ["ciw>=3.2"]\n', "utf-8"
    )
    assert frame.missing_package("ciw", pyproject).endswith("pip install --group bench")
    assert frame.missing_package("ray.serve", pyproject).endswith("pip install '.[ray]'")
    assert frame.missing_package("other_peer", pyproject).endswith("pip install other-peer")
