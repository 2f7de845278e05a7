"""Laws of training in phases: what is trained when, in which order the channels lie, how inputs are moved."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")

from plugins.supernet.tests.helpers import make_options, make_run, make_space, parse_spec  # noqa: E402
from unfold_supernet.family import checkpoint  # noqa: E402
from unfold_supernet.networks import channel_sorting, supernet  # noqa: E402
from unfold_supernet.networks.space import Space  # noqa: E402
from unfold_supernet.schema.space import SpaceSpec  # noqa: E402
from unfold_supernet.training import curriculum, trainer  # noqa: E402
from unfold_supernet.training.family import train_supernet  # noqa: E402
from unfold_supernet.verbs.build import build_training_problem  # noqa: E402
from unfold_supernet.verbs.train import train  # noqa: E402
from unfoldkit.api import Progress, RunDir  # noqa: E402

pytestmark = pytest.mark.torch
SPEC = """
version: 1
kind: supernet
name: t
data: {source: digits}
space: {stages: [{width: 4}, {width: 8}], expand: [0.5, 1], depth: [1, 2], coupling: independent}
training: {epochs: 2, batch: 256, rule: progressive, sort: true, alone: false}
"""


def space(**lists: object) -> Space:
    """Return a space over three widths, depths and two kernels, or over what is given."""
    given_ = {"expand": (0.25, 0.5, 1.0), "depth": (1, 2, 3), "kernel": (3, 5), "coupling": "independent"}
    stages = ({"width": 8}, {"width": 12})
    return make_space(SpaceSpec.model_validate({"stages": stages, **given_, **lists}), 3, (9, 7), 2, 4)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.booleans())
def test_shrinking_opens_one_dimension_after_the_other(epochs: int, sort: bool) -> None:
    """Phases follow without a gap, the list only grows, and the last one has every net; channels are sorted once."""
    subnets = space().subnets
    found = curriculum.build_phases(subnets, make_options(epochs=epochs, rule="progressive", sort=sort))
    assert [one.start_epoch for one in found] == [0, *(one.end_epoch for one in found[:-1])]
    assert len(found[0].subnets) == 1
    for before, after in pairwise(found):
        assert set(before.subnets) <= set(after.subnets)
    assert set(found[-1].subnets) == set(subnets)
    assert sum(one.sorts_channels for one in found) == sort
    assert not any(min(one.expand) < 1 for phase in found for one in phase.subnets if phase.samples in (1, 2))


def test_shrinking_trains_every_resolution() -> None:
    """Where nothing but the resolution is elastic, all nets are opened after the largest one."""
    subnets = space(expand=(1.0,), depth=(2,), kernel=(3,), resolution=(0.5, 1.0)).subnets
    found = curriculum.build_phases(subnets, make_options(epochs=18, rule="progressive"))
    assert [(one.start_epoch, one.epochs, len(one.subnets), one.has_teacher) for one in found] == [
        (0, 18, 1, False),
        (18, 13, 2, True),
    ]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(9, 7), (11,)]))
def test_sorted_channels_leave_the_largest_net_as_it_was(seed: int, size: tuple[int, ...]) -> None:
    """After sorting, the largest net answers as before, and each group's importances descend."""
    whole = replace(space(), size=size)
    weights = supernet.init_weights(whole, seed)
    x, extra = torch.randn((6, 3, *size)), torch.randn((6, 2))
    places = channel_sorting.rank_channels(whole, weights)
    after = channel_sorting.sort_channels(whole, weights, places)
    one, other = (supernet.train_forward(whole, each, whole.largest, x, extra) for each in (weights, after))
    assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    again = channel_sorting.rank_channels(whole, after)
    assert all(torch.equal(found, torch.arange(len(found))) for found in again.values())


def test_every_stage_may_take_its_own() -> None:
    """With scope stage, entries are chosen for each stage (CompOFA: entries to the power of stages), once each."""
    lists = {"expand": (0.5, 1.0), "depth": (1, 2), "kernel": (3,)}
    compound = space(**lists, coupling="compound", scope="stage", resolution=(1.0, 0.5))
    every = space(**lists, scope="stage")
    assert len(compound.subnets) == len(set(compound.subnets)) == 2**2 * 2
    assert len(every.subnets) == len({one.name for one in every.subnets}) == 4**2
    assert compound.largest in compound.subnets


def test_shrinking_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    """Progressive shrinking that dies in any epoch, sorted channels and teacher or not, ends with the same weights."""
    spec = parse_spec(SPEC)
    run = make_run(tmp_path / "whole")
    problem = build_training_problem(spec, run)
    whole = train_supernet(problem, run.directory, run.progress)
    last = curriculum.build_phases(whole.supernet.space.subnets, problem.options)[-1].end_epoch
    for at in range(1, last):
        directory = RunDir(tmp_path / str(at))
        with pytest.raises(KeyboardInterrupt):
            train_supernet(problem, directory, _dying(at))
        resumed = train_supernet(problem, directory, run.progress)
        assert resumed.steps == whole.steps
        for name, tensor in whole.supernet.weights.items():
            assert torch.equal(tensor, resumed.supernet.weights[name]), (at, name)


def _dying(at: int) -> Progress:
    def dies(_step: str, done: int, _total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    return dies


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.integers(0, 99), st.booleans())
def test_moved_inputs_keep_what_stays_inside(shift: int, seed: int, flat: bool) -> None:
    """Each input is moved by at most ``shift`` places an axis: what it holds is found again, and zeros came in."""
    size = (12,) if flat else (8, 9)
    x = torch.zeros((5, 1, *size))
    x[(slice(None), 0, *(edge // 2 for edge in size))] = 1.0
    moved = trainer.augment_inputs(x, make_options(shift=shift), seed, 1, 2)
    assert moved.shape == x.shape
    assert torch.equal(moved.flatten(1).sum(1), torch.ones(5))
    for before, after in zip(x, moved, strict=True):
        assert ((before.nonzero() - after.nonzero()).abs() <= shift).all()


LARGE = """
version: 1
kind: supernet
name: t
data: {source: digits}
space:
  stages: [{width: 4}, {width: 8}]
  expand: [0.5, 1]
  depth: [1, 2]
  coupling: independent
  scope: stage
  search: {above: 8, measured: 10, points: 3, population: 8, generations: 2}
training: {epochs: 2, batch: 256, rule: sandwich, alone: false, calibrate: 256}
"""


def test_a_large_space_is_trained_by_sandwich_and_searched(tmp_path: Path) -> None:
    """Of a space above the limit, the family holds the nets that a search found, with the largest."""
    spec = parse_spec(LARGE)
    report = train(spec, make_run(tmp_path))
    held = checkpoint.read_supernet(RunDir(tmp_path)).space
    assert 2 <= len(held.subnets) <= 3
    assert held.largest in held.subnets
    assert dict(report.lines)["search"].startswith("16 subnets, ")
