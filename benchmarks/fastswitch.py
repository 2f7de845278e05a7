"""What an on-chip buffer for shared weights saves, by a simulator that agrees with SCALE-Sim on compute cycles.

The families of the papers on a model of a ZCU104, over buffer sizes and bandwidths, against machines of equal silicon
that keep nothing. Fair: the machine that keeps nothing may prefetch through the layers with the same bytes.
SCALE-Sim 3.0.0 runs in an environment of its own, as it does not run with this NumPy.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.board_rates import list_board_notes, predict_board_rates, summarize_board_errors
from benchmarks.frame import FOLDER
from unfold_supernet.accelerator import cost_model, tile_simulator
from unfold_supernet.accelerator.cost_model import count_cycles
from unfold_supernet.accelerator.hardware import get_presets
from unfold_supernet.accelerator.layers import Layer, tabulate_subnet
from unfold_supernet.accelerator.queries import QueryStream, draw_levels, draw_queries, scale_levels
from unfold_supernet.accelerator.reference_families import build_reference_family, get_reference_spaces
from unfold_supernet.accelerator.scheduler import run_queries
from unfold_supernet.accelerator.tile_traffic import BufferSizes, LayerShape, plan_tiles, search_tiles_exhaustively
from unfold_supernet.report.sentences import name_strategy
from unfold_supernet.study import sweep
from unfold_supernet.study.published import check_claims
from unfold_supernet.study.strategies import compare_strategies, count_core_bytes
from unfold_supernet.study.sweep import Savings

MIB = 2**20
PERSISTENT = 1728 * 1024
SIZES = tuple(int(MIB * size) for size in (0.25, 0.5, 1, 2, 3, 4, 6, 8))
BANDWIDTHS = (19.2e9, 4e9, 2e9, 1e9)
PEERS = FOLDER.parent / ".nox" / "peers" / "scalesim"
PACKAGES = ("scalesim==3.0.0", "numpy<2.4")
LAYERS = (
    (256, 256, 3, 7), (512, 1024, 1, 7), (128, 128, 3, 14), (256, 512, 1, 14), (64, 64, 3, 28), (64, 256, 1, 28),
    (1000, 2048, 1, 1),
)  # fmt: skip
"""Layers of a ResNet-50 as (kernels, channels, window, map)."""
ROUNDS = 200
RANDOM_LAYERS = 200


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:  # noqa: ARG001 - needs no data
    """Sweep, play and compare.

    Args:
        quick: Fewer sizes, shorter streams, two layers of the peer.
        seed: Seed of the streams.
        data: Not needed.

    Returns:
        ``metrics``, ``peers``, ``tables`` and ``notes``.
    """
    asked = draw_queries(1000 if quick else 10_000, "random", seed)
    sizes = sorted({*SIZES[::3], PERSISTENT} if quick else {*SIZES, PERSISTENT})
    points = {name: list(_points(name, sizes, asked)) for name in get_reference_spaces()}
    every = [point for found in points.values() for point in found]
    boards = predict_board_rates()
    peer, notes = _peer(LAYERS[:2] if quick else LAYERS, LAYERS[:1] if quick else LAYERS[:2])
    metrics = {
        "traffic_saving_max": max(point.traffic_best for point in every),
        "latency_saving_max": max(point.latency_best for point in every),
        "latency_saving_fair": max(point.latency_fair_best for point in every),
        "energy_saving_max": max(point.energy for point in every),
        **_at_papers_size(points),
        "queries_per_s": _queries_per_second(1_000_000 if quick else 20_000_000, seed),
        "event_gap_tiles_max": _event_gap(),
        "tiling_error_percent_max": _tiling_error(20 if quick else RANDOM_LAYERS, seed),
        **summarize_board_errors(boards),
        "scalesim_ratio": peer.get("ratio"),
        "scalesim_cycle_error_percent": peer.get("error_percent"),
    }
    tables = {
        "buffers": [_row(name, point) for name, found in points.items() for point in found],
        "claims": [row for name, found in points.items() for row in _claims(name, found)],
        "ways": [row for name in points for row in _ways(name, asked)],
        "boards": boards,
        "cycles": peer.get("layers", []),
    }
    aims = {"queries_per_s": "≥ 1e7", "scalesim_ratio": "≥ 1,000", "scalesim_cycle_error_percent": "0"}
    aims |= {"tiling_error_percent_max": "≤ 10", "board_error_percent_median": "≤ 15"}
    peers = {"scalesim": {"seconds_a_layer": peer["seconds"]}} if peer else {}
    return {"metrics": metrics, "peers": peers, "tables": tables, "aims": aims, "notes": [*_notes(), *notes]}


def _points(name: str, sizes: Sequence[int], asked: QueryStream) -> Iterator[Savings]:
    found = build_reference_family(name)
    yield from sweep.sweep_buffers(found, get_presets()["zcu104"], sizes, BANDWIDTHS, asked, "strict-accuracy")


def _at_papers_size(points: dict[str, list[Savings]]) -> dict[str, float]:
    """Return the savings of the best net at the buffer of the papers' board, by family."""
    result = {}
    for name, found in points.items():
        short = name.removeprefix("ofa-")
        here = [point for point in found if point.persistent_bytes == PERSISTENT]
        result[f"traffic_saving_{short}"] = here[0].traffic_best
        for point in here:
            label = f"{short}_{point.bandwidth / 1e9:g}"
            result[f"latency_saving_{label}"] = point.latency_best
            result[f"latency_saving_fair_{label}"] = point.latency_fair_best
    return result


def _row(name: str, point: Savings) -> dict[str, Any]:
    return {
        "family": name,
        "buffer_mib": point.persistent_bytes / MIB,
        "gb_per_s": point.bandwidth / 1e9,
        "traffic_best": point.traffic_best,
        "traffic_stream": point.traffic,
        "latency_best": point.latency_best,
        "latency_stream": point.latency,
        "fair_best": point.latency_fair_best,
        "fair_stream": point.latency_fair,
        "accuracy_points": point.points,
        "whole_energy": point.energy,
    }


def _claims(name: str, points: Sequence[Savings]) -> Iterator[dict[str, Any]]:
    for line in check_claims(points, PERSISTENT):
        needs, fair = (None if value is None else value / MIB for value in (line.needed_bytes, line.needed_bytes_fair))
        claim = {"claimed_in": line.claim.version, "of": line.claim.quantity, "up_to": line.claim.value}
        found = {"obtained": line.layered, "obtained_fair": line.fair, "needs_mib": needs, "needs_mib_fair": fair}
        yield {"family": name, **claim, "gb_per_s": line.bandwidth / 1e9, **found}


def _ways(name: str, asked: QueryStream) -> Iterator[dict[str, Any]]:
    machine = replace(get_presets()["zcu104"], bandwidth=2e9)
    setting = sweep.fit_to_stream(sweep.build_setup(build_reference_family(name), machine), asked, "strict-accuracy")
    core_bytes = count_core_bytes(setting)
    for way in compare_strategies(setting, asked, "strict-accuracy", every=16, batch=8):
        label = name_strategy(way.strategy, 16, 8, core_bytes)
        times = {"ms": way.layered.seconds * 1e3, "ms_deep_prefetch": way.deep.seconds * 1e3}
        yield {"family": name, "way": label, **times, "mb": way.layered.bytes / 1e6, "hit": way.layered.hit}


def _queries_per_second(count: int, seed: int) -> float:
    """Return how many queries the scheduler plays a second of processor time while it chooses what to keep every 16."""
    setting = sweep.restrict_order(
        sweep.build_setup(build_reference_family("ofa-resnet50"), get_presets()["zcu104"]), "stall"
    )
    wanted = scale_levels(draw_levels(count, "bursty", seed), setting.layered, "strict-accuracy")
    bandwidth = setting.machine.bandwidth
    run_queries(wanted[:1000], setting.layered, bandwidth, cache="avgnet", column=1)
    times = []
    for _ in range(3):
        began = time.process_time()
        run_queries(wanted, setting.layered, bandwidth, cache="avgnet", column=1)
        times.append(time.process_time() - began)
    return count / min(times)


def _event_gap() -> float:
    """Return the largest difference of closed form and events, in tiles a layer."""
    worst = 0.0
    for name in get_reference_spaces():
        for bandwidth in BANDWIDTHS:
            setting = sweep.build_setup(
                build_reference_family(name), replace(get_presets()["zcu104"], bandwidth=bandwidth), ("stall",)
            )
            for item in setting.works:
                given = (item, setting.cached.graph, setting.machine)
                gap = abs(tile_simulator.simulate_latency(*given, deep=False) - cost_model.estimate_latency(*given))
                worst = max(worst, gap / tile_simulator.sum_tile_times(*given))
    return worst


def _tiling_error(count: int, seed: int) -> float:
    """Return the largest difference of DRAM bytes to those of the best of all tilings, in percent of them.

    Layers and buffers are drawn: kernels, channels, windows, strides and maps of common networks, buffers from 2 KiB
    to 1 MiB. What does not fit at all is drawn again.
    """
    rng = np.random.default_rng([seed, 0xD12])
    worst = 0.0
    while count:
        kernels, channels, window, edge, stride, wide = (
            int(rng.choice(values))
            for values in (
                (1, 16, 24, 48, 96, 128, 200, 320, 512),
                (1, 3, 16, 40, 64, 112, 192, 256),
                (1, 3, 5, 7),
                (7, 14, 20, 28, 56),
                (1, 2),
                (1, 2),
            )
        )
        shape = LayerShape(
            kernels=kernels, channels=channels, window=(window, window), out=(edge, edge), stride=(stride, stride)
        )
        weights, maps = (int(2**power) for power in rng.uniform(11, 20, 2))
        buffers = BufferSizes(weights, maps, wide, wide)
        try:
            best = search_tiles_exhaustively(shape, buffers)
        except ValueError:
            continue
        worst = max(worst, abs(plan_tiles(shape, buffers).bytes / best - 1) * 100)
        count -= 1
    return worst


def _peer(stationary: Sequence[Any], output: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
    """Return how SCALE-Sim compares on the same layers, or a note why it could not run."""
    python = _environment()
    if python is None:
        return _repeat_peer()
    jobs = [("weight-stationary", layer) for layer in stationary] + [("output-stationary", layer) for layer in output]
    # a process a layer, as many at once as there are cores: it takes minutes, one after the other
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        theirs = list(pool.map(lambda job: _scalesim(python, *job), jobs))
    rows: list[dict[str, Any]] = [
        {"dataflow": dataflow, "layer": str(layer), "scalesim": cycles_, "unfold": _ours(dataflow, layer)}
        for (dataflow, layer), (cycles_, _took) in zip(jobs, theirs, strict=True)
    ]
    seconds = sum(took for _cycles, took in theirs)
    error = max(abs(row["unfold"] / row["scalesim"] - 1) for row in rows) * 100
    each = seconds / len(rows)
    return {"ratio": each / _seconds_a_layer(), "error_percent": error, "seconds": each, "layers": rows}, []


def _repeat_peer() -> tuple[dict[str, Any], list[str]]:
    """Compare with the SCALE-Sim cycles of the stored result, where it cannot run; our cycles are computed anew."""
    path = FOLDER / "results" / "fastswitch.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    cycles = stored.get("tables", {}).get("cycles", [])
    if not cycles:
        return {}, ["SCALE-Sim was not measured: its environment could not be made here."]
    rows = [row | {"unfold": _ours(row["dataflow"], ast.literal_eval(row["layer"]))} for row in cycles]
    error = max(abs(row["unfold"] / row["scalesim"] - 1) for row in rows) * 100
    seconds = stored["peers"]["scalesim"]["seconds_a_layer"]
    peer = {"ratio": seconds / _seconds_a_layer(), "error_percent": error, "seconds": seconds, "layers": rows}
    return peer, ["SCALE-Sim was not run again: its cycles and seconds are of an earlier run. Our cycles are new."]


def _environment() -> Path | None:
    """Return the Python of an environment with SCALE-Sim, made at the first call."""
    python = PEERS / "bin" / "python"
    if python.is_file():
        return python
    uv = shutil.which("uv")
    make = [[uv, "venv", str(PEERS)]] if uv else [[sys.executable, "-m", "venv", str(PEERS)]]
    pip = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
    for words in (*make, [*pip, *PACKAGES]):
        if subprocess.run(words, capture_output=True, check=False).returncode:
            shutil.rmtree(PEERS, ignore_errors=True)
            return None
    return python


def _scalesim(python: Path, dataflow: str, layer: Sequence[int]) -> tuple[int, float]:
    """Return SCALE-Sim's compute cycles of a layer and its seconds of processor time."""
    with tempfile.TemporaryDirectory() as name:
        folder, short = Path(name), {"weight-stationary": "ws", "output-stationary": "os"}[dataflow]
        config = (FOLDER / "scalesim.cfg").read_text(encoding="utf-8").replace("DATAFLOW", short)
        (folder / "c.cfg").write_text(config, encoding="utf-8")
        # each line ends with a comma, as it wants
        k, c, r, m = layer
        shape = f"l, {m + r - 1}, {m + r - 1}, {r}, {r}, {c}, {k}, 1,\n"
        (folder / "t.csv").write_text(f"head,\n{shape}", encoding="utf-8")
        (folder / "l.csv").write_text("head,\nl, " + "1, " * 20 + "\n", encoding="utf-8")
        words = [str(python), str(FOLDER / "scalesim_peer.py"), *(str(folder / f) for f in ("c.cfg", "t.csv", "l.csv"))]
        # its progress bars take a fifth of its time, and this call captures them unseen
        around = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        output = subprocess.run([*words, name], capture_output=True, text=True, check=True, env=around).stdout
        with (folder / "run" / "COMPUTE_REPORT.csv").open(newline="", encoding="utf-8") as lines:
            row = list(csv.reader(lines))[1]
    # total without the fill of the buffers, less what waits for memory
    return int(float(row[2])) - int(float(row[3])), float(output.rpartition("seconds ")[2])


def _ours(dataflow: str, layer: Sequence[int]) -> int:
    return int(count_cycles(_net(layer), get_presets()[dataflow])[0])


def _seconds_a_layer() -> float:
    nets = [_net(layer) for layer in LAYERS]
    machine = get_presets()["weight-stationary"]
    began = time.process_time()
    for _ in range(ROUNDS):
        for one in nets:
            count_cycles(one, machine)
    return (time.process_time() - began) / (ROUNDS * len(nets))


def _net(layer: Sequence[int]) -> Any:
    kernels, depth, window, out = layer
    edge = out + window - 1
    shape = Layer(kernels, depth, (window, window), (out, out), depth * edge * edge)
    return tabulate_subnet("one", ["layer"], {"layer": shape}, 0.0)


def _notes() -> list[str]:
    return [
        "Savings are computed by a model of a ZCU104 with 1.69 MiB kept; no board was measured.",
        "best: the net that gains most; stream: the mean over random queries with STRICT_ACCURACY.",
        "energy_saving_max counts arithmetic, on-chip accesses and 0.5 W of static power too.",
        "tiling_error_percent_max: DRAM bytes of 200 random layers against the best of all tiles and loop orders.",
        *list_board_notes(),
        "queries_per_s counts processor time on one thread, the best of three rounds.",
        "SCALE-Sim's compute cycles are compared, without its time to fill buffers; its seconds are processor time.",
    ]
