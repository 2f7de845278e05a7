"""What a verb is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from unfoldkit.engines.local import LocalEngine
from unfoldkit.errors import UnfoldError
from unfoldkit.run_context import Options, Run
from unfoldkit.run_directory import RunDir


def test_a_path_is_looked_for_beside_the_spec_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is found beside the spec, else in the working folder; else both places are reported."""
    for folder in ("spec", "work"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "both.csv").write_text(folder, encoding="utf-8")
    (tmp_path / "work" / "one.csv").write_text("work", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "work")
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path / "spec")
    assert run.path("both.csv").read_text(encoding="utf-8") == "spec"
    assert run.path("one.csv").read_text(encoding="utf-8") == "work"
    with pytest.raises(UnfoldError, match=r"data\.path: no such file or folder.*spec/x\.csv or .*work/x\.csv"):
        run.path("x.csv", key="data.path")


def test_a_run_that_is_missing_names_the_spec_that_makes_it(tmp_path: Path) -> None:
    """Where a spec names a run that does not exist yet, the hint is the command that makes it."""
    (tmp_path / "first.yaml").write_text("version: 1\nname: story  # of one\n", encoding="utf-8")
    (tmp_path / "a.yaml").mkdir()
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path)
    with pytest.raises(UnfoldError, match=r"no such file or folder: 'runs/story' .unfold train .*first\.yaml"):
        run.path("runs/story", key="stages.from")
    with pytest.raises(UnfoldError, match="searched"):
        run.path("runs/other", key="stages.from")


def test_every_option_is_documented_for_authors() -> None:
    """Each key that a verb may be given is named where the contract describes what a verb is given."""
    assert [key for key in Options.__annotations__ if f"``{key}``" not in str(Run.__doc__)] == []
