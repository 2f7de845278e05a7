"""The exact messages for each bad spec."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.badspecs.accept import checked, others, specs
from tests.support import ROOT


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec.stem)
def test_a_bad_spec_is_reported_with_the_expected_messages(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mistake is one line on stdout with its place and what to do, the count is on stderr, and the code is 2."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("UNFOLD_DISABLE_PLUGINS", others(spec))
    outcome = checked(spec)
    expected = spec.with_suffix(".expected").read_text(encoding="utf-8")
    assert outcome.out == expected
    count = len(expected.splitlines())
    assert outcome.err == f"{count} mistake{'s' if count > 1 else ''} in {spec.as_posix()}\n"
    assert outcome.code == 2


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec.stem)
def test_a_mistake_has_a_place_in_the_file(spec: Path) -> None:
    """Every line begins with file, line and column, and the column is inside the line that it names."""
    lines = (ROOT / spec).read_bytes().decode("utf-8", "replace").split("\n")
    for message in (ROOT / spec).with_suffix(".expected").read_text(encoding="utf-8").splitlines():
        file, line, column, _ = message.split(":", 3)
        assert file == spec.as_posix()
        assert 1 <= int(column) <= len(lines[int(line) - 1]) + 1


def test_there_are_enough() -> None:
    """The folder holds at least 42 bad specs, each with what is expected, and nothing expected without its spec."""
    found = {path.stem for path in specs() if path.parent.name == "badspecs"}
    assert len(found) >= 42
    assert found == {path.stem for path in (ROOT / "tests" / "badspecs").glob("*.expected")}


@pytest.mark.parametrize("name", ["anchor-bomb", "anchor-itself", "nested-too-deep", "nested-too-deep-anchors"])
@pytest.mark.timed
def test_a_bomb_is_refused_quickly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a few hundred bytes that expands to millions of values is refused within two seconds of work."""
    monkeypatch.chdir(ROOT)
    began = time.process_time()
    assert checked(Path("tests/badspecs") / f"{name}.yaml").code == 2
    assert time.process_time() - began < 2
