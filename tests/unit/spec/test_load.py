"""Specs, plans and run folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import ECHO, HELLO, Unfold
from unfoldkit.errors import UnfoldError
from unfoldkit.registry import Registry, load_registry
from unfoldkit.run_directory import RunDir
from unfoldkit.spec.resolve import LoadedSpec, dump, load_spec, spec_hash


@pytest.fixture(scope="module")
def registry() -> Registry:
    """Return the installed plugins."""
    return load_registry()


def loaded(registry: Registry, path: str | Path, **more: str) -> LoadedSpec:
    """Return what is at ``path``."""
    return load_spec(str(path), registry.kinds, find_kind=registry.kind, **more)


@pytest.fixture
def run(unfold: Unfold, tmp_path: Path) -> Path:
    """Return the folder of a planned run with its spec in another folder."""
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "a.yaml").write_text(ECHO, encoding="utf-8")
    assert unfold("plan", "specs/a.yaml").code == 0
    return tmp_path / "runs" / "a"


def test_the_hash_is_of_the_meaning(registry: Registry) -> None:
    """Layout, comments, order and defaults do not change the hash of a spec; a value does."""
    first = loaded(registry, "-", stdin=ECHO + "pause: 1500 ms\n")
    other = loaded(
        registry, "-", stdin="# same\nname: a\nkind: echo\nmessage: 'hi'\nversion: 1\npause: 1.5 s\nrepeat: 1\n"
    )
    changed = loaded(registry, "-", stdin=ECHO + "pause: 1501 ms\n")
    assert spec_hash(first.spec) == spec_hash(other.spec) != spec_hash(changed.spec)


def test_a_run_remembers_where_its_paths_start(registry: Registry, run: Path) -> None:
    """The spec of a run, and its plan, look for files where the spec that was given lay."""
    origin = (run.parents[1] / "specs").resolve()
    for path in (run, run / "spec.yaml", run / "plan.yaml"):
        assert loaded(registry, path).base.resolve() == origin
    assert loaded(registry, run).run == run
    assert loaded(registry, run / "plan.yaml").plan["decision"]["voice"] == "plain"


@pytest.mark.parametrize("name", ["spec.yaml", "origin.json"])
def test_a_changed_run_is_refused(registry: Registry, run: Path, name: str) -> None:
    """What was changed in a run after it was written is not loaded, and is named."""
    with (run / name).open("a", encoding="utf-8") as stream:
        stream.write(" ")
    with pytest.raises(UnfoldError, match=rf"{name}: the file was changed"):
        loaded(registry, run)


def test_a_folder_without_a_run_is_reported(registry: Registry, tmp_path: Path) -> None:
    """A folder without a run is reported as such, and so is a run without a spec."""
    RunDir(tmp_path / "half").write("other", b"x")
    for folder in (tmp_path, tmp_path / "half"):
        with pytest.raises(UnfoldError, match="the folder holds no run"):
            loaded(registry, folder)


def test_a_spec_survives_being_dumped(registry: Registry) -> None:
    """What is dumped validates to an equal spec."""
    spec = loaded(registry, HELLO).spec
    assert type(spec).model_validate(dump(spec), strict=False) == spec
