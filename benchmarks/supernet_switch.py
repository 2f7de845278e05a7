"""What it costs to answer by another subnet of shared weights, against loading a model.

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

    from unfold_supernet.family.space_builder import InputShape, build_space
    from unfold_supernet.networks import supernet
    from unfold_supernet.networks.batch_norm import calibrate_norms
    from unfold_supernet.schema.space import SpaceSpec
    from unfold_supernet.training.latency import measure_switch_costs
    from unfold_supernet.verbs.build import build_space_options

    torch.set_num_threads(1)
    stages = ({"width": 16}, {"width": 32}, {"width": 64})
    lists = {"expand": (0.25, 0.5, 0.75, 1.0), "depth": (1, 2, 3), "kernel": (5,), "coupling": "independent"}
    stem = {"kernel": 7, "stride": 2}
    given = SpaceSpec.model_validate({"form": "conv1d", "stages": stages, "stem": stem, **lists})
    space = build_space(build_space_options(given), InputShape(1, (128,), 2, 4))
    weights = supernet.init_weights(space, seed)
    x = torch.randn((64, 1, 128), generator=torch.Generator().manual_seed(seed))
    bound = {
        one.name: supernet.bind_subnet(space, weights, one, calibrate_norms(space, weights, one, x))
        for one in space.subnets
    }
    cost = measure_switch_costs(supernet.Supernet(space, weights, bound), 5_000 if quick else 50_000)
    metrics = {
        "switch_us_p50": cost.switch_p50_s * MICRO,
        "switch_us_p99": cost.switch_p99_s * MICRO,
        "views_us": cost.bind_s * MICRO,
        "view_ratio_max": max(cost.view_ratios.values()),
        "memory_ratio": cost.shared_bytes / cost.separate_bytes,
    }
    peers = {
        "load_state_dict": {"switch_us_p50": cost.load_state_s * MICRO},
        "build_and_load": {"switch_us_p50": cost.reload_s * MICRO},
    }
    aims = {
        "switch_us_p50": "≤ 10", "memory_ratio": "≤ 0.5",
    }  # fmt: skip
    notes = [
        "A switch is the first answer after a change of subnet, less the next answer of the same subnet (one row).",
        "view_ratio_max: the time of a batch of 32 on views over that on contiguous copies, the worst subnet.",
        "Memory counts weights and statistics, not the Python objects of the views.",
        "build_and_load builds the largest net's modules and reads its safetensors from memory.",
    ]
    versions = {"torch": torch.__version__}
    return {"metrics": metrics, "peers": peers, "aims": aims, "notes": notes, "versions": versions}
