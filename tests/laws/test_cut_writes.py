"""A run folder whatever moment its process dies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfoldkit.run_directory import RunDir, sha256, write_atomically

STEPS = ("fsync", "replace", "close", "rename", "unlink", "open")


class Cut(BaseException):
    """The process died here; nothing of the program can catch it."""


@dataclass
class Knife:
    """Cuts at the ``after``-th call of any step, before or after the step was done."""

    after: int
    late: bool
    calls: int = 0
    fell: bool = False
    kept: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def wrap(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return the step as it is while the process lives."""

        def cut(*args: Any, **more: Any) -> Any:
            if self.fell:
                # a dead process does nothing more, not even clean up
                raise Cut
            self.calls += 1
            if self.calls < self.after:
                return step(*args, **more)
            self.fell = True
            if self.late:
                step(*args, **more)
            raise Cut

        return cut


@contextmanager
def dying(knife: Knife) -> Iterator[None]:
    """Let the process die where the knife falls."""
    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, knife.wrap(getattr(os, name)))
        try:
            yield
        except Cut:
            return


def whole(run: RunDir) -> dict[str, bytes]:
    """Return every listed file after seeing that it reads back and matches its hash."""
    found = {name: run.read(name) for name in run.files()}
    assert all(sha256(data) == run.files()[name]["sha256"] for name, data in found.items())
    return found


WRITES = st.lists(st.tuples(st.sampled_from(["a.json", "b/c.json"]), st.binary(max_size=8)), min_size=1, max_size=4)


@settings(max_examples=40)
@given(before=WRITES, during=WRITES, after=st.integers(1, 60), late=st.booleans())
def test_a_run_is_whole_whenever_its_process_dies(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[tuple[str, bytes]],
    during: list[tuple[str, bytes]],
    after: int,
    *,
    late: bool,
) -> None:
    """Cut at any step: each listed file reads back with its hash, is an old or a new one, and the run goes on."""
    run = RunDir(tmp_path_factory.mktemp("run") / "r")
    for name, data in before:
        run.write(name, data)
    with dying(Knife(after, late)):
        for name, data in during:
            run.write(name, data)
    for name, data in whole(run).items():
        assert (name, data) in [*before, *during]
    for name, data in during:
        run.write(name, data)
    assert whole(run) == dict(before) | dict(during)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("step", range(1, 16))
def test_every_step_of_a_rewrite_can_be_the_last(tmp_path: Path, step: int, *, late: bool) -> None:
    """Rewriting a listed file, cut at each step in turn, never lists bytes that are not there."""
    run = RunDir(tmp_path / "r")
    run.write("model", b"old", made_from="1")
    knife = Knife(step, late)
    with dying(knife):
        run.write("model", b"new", made_from="2")
    assert whole(run) in ({"model": b"old"}, {}, {"model": b"new"})
    if not knife.fell:
        assert whole(run) == {"model": b"new"}
        assert run.has("model", made_from="2")


def test_what_a_killed_write_left_is_removed_in_time(tmp_path: Path) -> None:
    """A half-written file of a dead process goes when the run is next held, but not while it may be somebody's work."""
    run = RunDir(tmp_path / "r")
    with dying(Knife(1, late=True)):
        run.write("folder/model", b"new")
    (left,) = (tmp_path / "r" / "folder").iterdir()
    with run.locked():
        assert left.exists()
    os.utime(left, (0, 0))
    with run.locked():
        assert not left.exists()


def test_the_steps_are_all_seen(tmp_path: Path) -> None:
    """The knife sees a write's steps: without that the laws above would hold of nothing."""
    knife = Knife(10**9, late=False)
    with dying(knife):
        write_atomically(tmp_path / "a", b"x")
    assert knife.calls >= 4
