"""How well the model of a DPU core predicts published frame rates of boards, calibrated on other networks.

End to end, a frame costs more than its layers: the host decodes, resizes and scores it, and weights cross an interface
that the published tables do not describe. Both are calibrated: seconds of the host for each input pixel, and the
bandwidth at which bytes cross while nothing is computed. A network is predicted from networks of other architectures on
the ZCU104; no rate of the ZCU102 is used, only its clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.board_networks import BoardRate, list_board_rates
from unfold_supernet._types import FloatArray
from unfold_supernet.accelerator.cost_model import build_work, estimate_latency
from unfold_supernet.accelerator.hardware import get_presets

PRESET = "dpu-zcu104"
ZCU102_CLOCK_HZ = 281e6


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardDemand:
    """What a frame of a network demands of a board.

    Attributes:
        rate: The network and its published rates.
        pixels: Pixels of the input.
        compute_s: Seconds of computation of a core at the preset's clock.
        bytes: Bytes of weights and maps that cross the memory interface.
        model_s: Latency that the preset states, without the host.
        gop: Operations, in 10^9; two for a multiply-accumulate.
    """

    rate: BoardRate
    pixels: float
    compute_s: float
    bytes: float
    model_s: float
    gop: float


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:  # noqa: ARG001 - nothing is drawn or read
    """Predict the published rates.

    Args:
        quick: Makes no difference: it takes seconds.
        seed: Not needed.
        data: Not needed.

    Returns:
        ``metrics``, ``tables``, ``aims`` and ``notes``.
    """
    rows = predict_board_rates()
    return {
        "metrics": summarize_board_errors(rows),
        "tables": {"boards": rows},
        "aims": {"board_error_percent_median": "≤ 15"},
        "notes": list_board_notes(),
    }


def list_board_notes() -> list[str]:
    """List what the figures of boards need beside them."""
    return [
        "boards: rates of the Vitis AI Model Zoo 1.3, single thread, end to end; errors are those of latencies.",
        "Host time a pixel and bandwidth are calibrated on ZCU104 rates of architectures other than the network's.",
        "Which two figures to calibrate was chosen on these networks.",
    ]


def predict_board_rates() -> list[dict[str, Any]]:
    """Predict every network from networks of other architectures.

    Returns:
        By network: published and predicted frames per second on both boards, and errors of latencies in percent.
    """
    demands = [measure_demand(rate) for rate in list_board_rates()]
    clock_ratio = get_presets()[PRESET].clock_hz / ZCU102_CLOCK_HZ
    rows = []
    for demand in demands:
        others = [other for other in demands if other.rate.family != demand.rate.family]
        host_s_pixel, s_byte = calibrate_board(others)
        beside_s = demand.pixels * host_s_pixel + demand.bytes * s_byte
        fast, slow = 1 / (beside_s + demand.compute_s), 1 / (beside_s + demand.compute_s * clock_ratio)
        rate = demand.rate
        rows.append(
            {
                "network": rate.name,
                "gop": demand.gop,
                "zcu104_fps": rate.zcu104,
                "zcu104_predicted": fast,
                "zcu104_error_percent": (rate.zcu104 / fast - 1) * 100,
                "zcu102_fps": rate.zcu102,
                "zcu102_predicted": slow,
                "zcu102_error_percent": (rate.zcu102 / slow - 1) * 100,
                "uncalibrated_error_percent": (demand.model_s * rate.zcu104 - 1) * 100,
                "host_ms": demand.pixels * host_s_pixel * 1e3,
                "gb_per_s": 1e-9 / s_byte,
            }
        )
    return rows


def measure_demand(rate: BoardRate) -> BoardDemand:
    """Compute what the layers of a network demand."""
    subnet, machine = rate.build(), get_presets()[PRESET]
    work = build_work(subnet, machine)
    return BoardDemand(
        rate=rate,
        pixels=float(rate.edge**2),
        compute_s=float(work.compute_s.sum()),
        bytes=float(work.uncached_bytes.sum()),
        model_s=estimate_latency(work, np.zeros_like(subnet.graph), machine),
        gop=float(subnet.macs.sum()) * 2e-9,
    )


def calibrate_board(demands: Sequence[BoardDemand]) -> tuple[float, float]:
    """Calibrate the host's seconds for a pixel and the seconds for a byte on rates of the ZCU104.

    Least squares of relative errors; neither is below zero.
    """
    from scipy.optimize import nnls

    published_s: FloatArray = np.array([1 / demand.rate.zcu104 for demand in demands])
    terms = np.array([[demand.pixels, demand.bytes] for demand in demands])
    remaining = 1 - np.array([demand.compute_s for demand in demands]) / published_s
    # terms of one magnitude: pixels and bytes differ by orders
    scale = terms.max(axis=0)
    solution, _ = nnls(terms / scale / published_s[:, None], remaining)
    return float(solution[0] / scale[0]), float(solution[1] / scale[1])


def summarize_board_errors(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Summarize the errors of both boards, in percent of the published latency."""
    errors = np.abs([[row["zcu104_error_percent"], row["zcu102_error_percent"]] for row in rows])
    return {
        "board_networks": float(len(rows)),
        "board_error_percent_median": float(np.median(errors)),
        "board_error_percent_max": float(errors.max()),
        "board_error_uncalibrated_percent_median": float(
            np.median(np.abs([row["uncalibrated_error_percent"] for row in rows]))
        ),
    }
