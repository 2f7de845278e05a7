"""What it costs to answer by another net: routing to views of shared weights, against loading a model.

Twelve nets (four widths, three depths) in one set of untrained weights, of the shape of the heart-beat family; weights
do not matter to the time. Every way alternates between nets in one process, on one thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.frame import need

MICRO = 1e6


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:  # noqa: ARG001 - needs no data
    """Time the ways to switch.

    Args:
        quick: Fewer rounds.
        seed: Of the weights.
        data: Not needed.

    Returns:
        ``metrics``, ``peers``, ``aims`` and ``notes``.
    """
    need("torch", "torch")
    import torch

    from unfold_supernet.networks import supernet
    from unfold_supernet.networks.space import space_of
    from unfold_supernet.schema.models import SpaceSpec
    from unfold_supernet.training.latency import switching

    torch.set_num_threads(1)
    stages = ({"width": 16}, {"width": 32}, {"width": 64})
    lists = {"expand": (0.25, 0.5, 0.75, 1.0), "depth": (1, 2, 3), "kernel": (5,), "coupling": "independent"}
    stem = {"kernel": 7, "stride": 2}
    given = SpaceSpec.model_validate({"form": "conv1d", "stages": stages, "stem": stem, **lists})
    space = space_of(given, 1, (128,), 2, 4)
    weights = supernet.initial(space, seed)
    x = torch.randn((64, 1, 128), generator=torch.Generator().manual_seed(seed))
    bound = {
        one.name: supernet.bind(space, weights, one, supernet.calibrate(space, weights, one, x))
        for one in space.subnets
    }
    cost = switching(supernet.Supernet(space, weights, bound), 5_000 if quick else 50_000)
    metrics = {
        "switch_us_p50": cost.p50 * MICRO,
        "switch_us_p99": cost.p99 * MICRO,
        "views_us": cost.views * MICRO,
        "reload_ratio": cost.reload / cost.p50,
        "load_state_ratio": cost.load_state / cost.p50,
        "views_reload_ratio": cost.reload / cost.views,
        "memory_ratio": cost.bytes / cost.separate,
    }
    peers = {
        "load_state_dict": {"switch_us_p50": cost.load_state * MICRO},
        "build_and_load": {"switch_us_p50": cost.reload * MICRO},
    }
    aims = {
        "switch_us_p50": "≤ 5", "switch_us_p99": "≤ 50", "reload_ratio": "≥ 1,000", "load_state_ratio": "≥ 50",
        "memory_ratio": "≤ 0.4",
    }  # fmt: skip
    notes = [
        "A switch is to look up a net whose views were bound at the start; views_us is to bind them anew.",
        "Memory counts weights and statistics, not the Python objects of the views.",
        "build_and_load builds the largest net's modules and reads its safetensors from memory.",
    ]
    versions = {"torch": torch.__version__}
    return {"metrics": metrics, "peers": peers, "aims": aims, "notes": notes, "versions": versions}
