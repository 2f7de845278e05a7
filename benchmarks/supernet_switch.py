"""What a switch to another member of shared weights costs, against loading a model.

The six members of the shipped heart-beat family (`configs/supernet/ecg.yaml`) in one set of untrained weights, which
do not matter to the time; and twelve members of equal stages (four widths, three depths). Every way alternates between
members in one process, on one thread. The memory of the shipped family is what a process of its own holds of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.frame import FOLDER, need
from benchmarks.resident_memory import WAYS, measure_resident

if TYPE_CHECKING:
    from unfold_supernet.networks.supernet import Supernet
    from unfold_supernet.training.problem import SwitchCosts

MICRO = 1e6
CONFIG = FOLDER.parent / "configs" / "supernet" / "ecg.yaml"
TWELVE = {"expand": [0.25, 0.5, 0.75, 1.0], "depth": [1, 2, 3], "resolution": [1.0], "coupling": "independent"}
"""What makes twelve members of the stages of the shipped family."""
AIMS = {"first_answer_penalty_us": "≤ 10", "memory_ratio": "≤ 0.5"}


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:  # noqa: ARG001 - needs no data
    """Time the ways to switch.

    Args:
        quick: Fewer rounds.
        seed: Of the weights.
        data: Not needed.

    Returns:
        ``metrics``, ``peers``, ``tables``, ``aims``, ``versions`` and ``notes``.
    """
    need("torch", "torch")
    import torch

    torch.set_num_threads(1)
    cost = measure_family({}, seed, 5_000 if quick else 50_000)
    twelve = measure_family(TWELVE, seed, 500)
    resident = {way: measure_resident(way) for way in WAYS}
    metrics = {
        "first_answer_penalty_us": cost.switch_p50_s * MICRO,
        "first_answer_penalty_us_p99": cost.switch_p99_s * MICRO,
        "bind_us": cost.bind_s * MICRO,
        "views_ratio": max(cost.view_ratios.values()),
        "memory_ratio": resident["views"] / resident["modules"],
        "memory_ratio_sessions": resident["views"] / resident["sessions"],
        **{f"resident_kb_{way}": size / 1024 for way, size in resident.items()},
        "weights_ratio": cost.shared_bytes / cost.separate_bytes,
        "weights_ratio_twelve": twelve.shared_bytes / twelve.separate_bytes,
    }
    peers = {
        "load_state_dict": {"first_answer_penalty_us": cost.load_state_s * MICRO},
        "build_and_load": {"first_answer_penalty_us": cost.reload_s * MICRO},
    }
    notes = [
        "first_answer_penalty_us: the first answer after a change of member, less the next of the same (one row); p50.",
        "views_ratio: the time of a batch of 32 on views over that on contiguous copies, the worst member.",
        "resident_kb: what a process of its own gains by the family, after each member answered 1 and 512 rows.",
        "memory_ratio: views of shared weights over six separate torch modules; _sessions: over six of ONNX Runtime.",
        "weights_ratio: weights and statistics alone of the shipped family over those of six separate models.",
        "weights_ratio_twelve: the same of twelve members of its stages.",
        "build_and_load builds the largest member's modules and reads its safetensors from memory.",
    ]
    return {
        "metrics": metrics,
        "peers": peers,
        "tables": {"views": [{"member": name, "views_ratio": ratio} for name, ratio in cost.view_ratios.items()]},
        "aims": AIMS,
        "versions": {"torch": torch.__version__},
        "notes": notes,
    }


def measure_family(changed: dict[str, Any], seed: int, rounds: int) -> SwitchCosts:
    """Measure the family of the config with some keys of its space changed; ``rounds`` is the number of switches."""
    from unfold_supernet.training.latency import measure_switch_costs

    return measure_switch_costs(build_family(changed, seed), rounds)


def build_family(changed: dict[str, Any], seed: int) -> Supernet:
    """Build the untrained family of the config with some keys of its space changed."""
    import torch

    from unfold_supernet.family.space_builder import InputShape, build_space
    from unfold_supernet.networks import supernet
    from unfold_supernet.networks.batch_norm import calibrate_norms
    from unfold_supernet.schema.supernet import SupernetSpec
    from unfold_supernet.verbs.build import build_space_options
    from unfoldkit.spec.validate import validate
    from unfoldkit.spec.yaml_reader import parse

    document = parse(CONFIG.read_text(encoding="utf-8"), CONFIG.name)
    document.data["space"] |= changed
    spec = validate(SupernetSpec, document).space
    if spec is None:
        raise ValueError(f"{CONFIG.name} has no space")
    space = build_space(build_space_options(spec), InputShape(1, (128,), 2, 4))
    weights = supernet.init_weights(space, seed)
    x = torch.randn((64, 1, 128), generator=torch.Generator().manual_seed(seed))
    bound = {
        one.name: supernet.bind_subnet(space, weights, one, calibrate_norms(space, weights, one, x))
        for one in space.subnets
    }
    return supernet.Supernet(space, weights, bound)
