"""Shared by the tests that need torch: random supernets, inputs, and a small training problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import make_run, make_space, parse_spec
from unfold_supernet.networks import supernet
from unfold_supernet.networks.batch_norm import calibrate_norms
from unfold_supernet.networks.space import Space
from unfold_supernet.schema.space import SpaceSpec
from unfold_supernet.training.problem import TrainingProblem
from unfold_supernet.verbs.build import build_training_problem
from unfoldkit.api import Run

DIGITS_SPEC = """
version: 1
kind: supernet
name: t
data: {source: digits}
space: {form: conv2d, stages: [{width: 8}, {width: 16}], expand: [0.5, 1], depth: [1, 2]}
training: {epochs: 3, batch: 64, alone: false}
"""


def make_random_supernet(of: Space, seed: int = 0) -> supernet.Supernet:
    """Build a supernet with random weights and matching statistics."""
    weights = supernet.init_weights(of, seed)
    generator = torch.Generator().manual_seed(seed)
    bound = {}
    for one in of.subnets:
        x = torch.randn((64, of.channels, *of.size), generator=generator)
        bound[one.name] = supernet.bind_subnet(of, weights, one, calibrate_norms(of, weights, one, x))
    return supernet.Supernet(of, weights, bound)


def draw_inputs(of: Space, rows: int = 5) -> Any:
    """Draw random inputs."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn((rows, of.channels, *of.size), generator=generator)
    return x, torch.randn((rows, of.extra), generator=generator)


def build_digits_problem(folder: Path, epochs: int = 3) -> tuple[TrainingProblem, Run]:
    """Build a small training problem and a run."""
    spec = parse_spec(DIGITS_SPEC.replace("epochs: 3", f"epochs: {epochs}"))
    run = make_run(folder)
    return build_training_problem(spec, run), run


def make_token_space(
    size: tuple[int, ...], patch: int, heads: int, each: int, widths: tuple[int, ...], extra: int = 2
) -> Space:
    """Build a space of every combination of three widths, two depths and two resolutions."""
    given_ = {
        "form": "transformer",
        "stages": tuple({"width": width} for width in widths),
        "attention": {"patch": patch, "width": heads * each, "heads": heads},
        "expand": (0.25, 0.5, 1.0),
        "depth": (1, 2),
        "resolution": (1.0, 0.5),
        "coupling": "independent",
    }
    return make_space(SpaceSpec.model_validate(given_), 2, size, extra, 4)


def token_spaces() -> st.SearchStrategy[Space]:
    """Draw a space over inputs of one or two axes, with or without extra numbers."""
    sizes = st.lists(st.integers(6, 15), min_size=1, max_size=2).map(tuple)
    widths = st.lists(st.integers(4, 40), min_size=1, max_size=2).map(tuple)
    return st.builds(
        make_token_space, sizes, st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), widths, st.integers(0, 2)
    )


def make_random_transformer(of: Space, seed: int) -> supernet.Supernet:
    """Build a supernet with random tensors, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(one.shape, generator=generator) * 0.3 for name, one in supernet.init_weights(of, 0).items()
    }
    return supernet.Supernet(of, weights, {one.name: supernet.bind_subnet(of, weights, one, ()) for one in of.subnets})
