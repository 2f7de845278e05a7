"""Operator tables give step times, and real runs of vLLM are met with them."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from unfold_pipeline.engine.simulation.cluster import simulate
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits, StepTimes
from unfold_pipeline.engine.simulation.workload import build_requests
from unfold_pipeline.engine.step_times.all_reduce import AllReduce
from unfold_pipeline.engine.step_times.columns import TableEnd
from unfold_pipeline.engine.step_times.operator_tables import (
    DENSE_OPERATORS,
    find_profile_ends,
    read_operator_tables,
    read_profile,
)
from unfoldkit.api import UnfoldError


def write(folder: Path, *, attention: str = "") -> dict[str, Path]:
    dense = "".join(f"g,{name},{tokens},{tokens}\n" for name in sorted(DENSE_OPERATORS) for tokens in (1, 3))
    points = [(c, k, d, x) for c in (0, 4) for k in (0, 8) for d in (0, 2) for x in (0, 16)]
    rows = attention or "".join(f"g,{c},{k},{d},{x},{c + d}\n" for c, k, d, x in points)
    texts = {
        "dense": "gpu,layer,tokens,time_us\n" + dense,
        "per_sequence": "gpu,layer,sequences,time_us\ng,lm_head,1,5\ng,lm_head,2,7\n",
        "attention": "gpu,prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n" + rows,
    }
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text, "utf-8")
    return {name: folder / f"{name}.csv" for name in texts}


def read(paths: dict[str, Path], gpu: str = "g") -> StepTimes:
    return read_operator_tables(**paths, gpu=gpu, layers=2, max_tokens=6, max_requests=3)


def test_operators_are_summed_over_layers_and_continue_beyond_the_table(tmp_path: Path) -> None:
    """Layer operators count once a layer, norms twice, embedding and final norm once a step; sizes beyond grow on."""
    times = read(write(tmp_path))
    layer_operators = len(DENSE_OPERATORS) - 2
    runs = 2 * (layer_operators + 1) + 2
    assert times.dense[6] == pytest.approx(6 * runs * 1e-6)
    assert times.sequence[3] == pytest.approx(9e-6)
    assert times.attention[1, 0, 1, 1] == pytest.approx(2 * 6e-6)


@pytest.mark.parametrize(
    ("attention", "gpu", "message"),
    [("", "other", "no rows of other"), ("g,0,0,0,0,1\ng,4,0,2,16,1\ng,8,8,2,32,1\n", "g", "holes")],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path: Path, attention: str, gpu: str, message: str) -> None:
    """Another GPU, or a hole that the structure of attention does not explain, is an error with the file's name."""
    with pytest.raises(UnfoldError, match=message):
        read(write(tmp_path, attention=attention), gpu)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("gpu", "blocks", "slots", "overhead_s", "hits", "preemptions", "within"),
    [("RTX4090", 2588, 256, 0.0, 70_064, 192, 0.005), ("RTXPRO6000", 35_600, 128, 0.0015, 19_520, 0, 0.015)],
)
def test_real_runs_are_met(
    shared: Path, gpu: str, blocks: int, slots: int, overhead_s: float, hits: int, preemptions: int, within: float
) -> None:
    """Means and p99 of TTFT, TPOT and latency of two vLLM runs are met, as are cache hits and preemptions."""
    folder = shared / "data" / "engines"
    with gzip.open(folder / "vllm_requests.csv.gz", "rt", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["gpu"] == gpu]
    column = {name: np.array([float(row[name]) for row in rows]) for name in rows[0] if name != "gpu"}
    whole = {name: values.astype(np.int64) for name, values in column.items()}
    requests = build_requests(
        column["arrival_s"],
        whole["input_tokens"],
        whole["output_tokens"],
        shared_tokens=whole["shared_prefix_tokens"],
        shared_with=whole["shared_with"],
    )
    tables = {name: folder / f"operators_{name}.csv.gz" for name in ("dense", "per_sequence", "attention")}
    times = read_operator_tables(**tables, gpu=gpu, layers=32, max_tokens=2048, max_requests=256)
    run = simulate(requests, EngineLimits(num_blocks=blocks, max_num_seqs=slots), times.calibrated(overhead=overhead_s))
    assert (run.hit_tokens, run.preemptions) == (hits, preemptions)
    later = np.maximum(column["output_tokens"] - 1, 1)
    pairs = (
        (run.first_token_s - column["arrival_s"], column["first_token_s"] - column["arrival_s"]),
        (
            (run.last_token_s - run.first_token_s) / later,
            (column["last_token_s"] - column["first_token_s"]) / later,
        ),
        (run.last_token_s - column["arrival_s"], column["last_token_s"] - column["arrival_s"]),
    )
    for simulated, real in pairs:
        assert simulated.mean() == pytest.approx(real.mean(), rel=within)
        assert np.percentile(simulated, 99) == pytest.approx(np.percentile(real, 99), rel=within)


def write_profile(folder: Path, degrees: tuple[int, ...] = (1, 2)) -> Path:
    """Write a profile without a column of the GPU; tp2 leaves out operators that do not depend on it."""
    for degree in degrees:
        part = folder / f"tp{degree}"
        part.mkdir(parents=True)
        names = sorted(DENSE_OPERATORS if degree == 1 else DENSE_OPERATORS - {"layernorm", "final_layernorm"})
        rows = "".join(f"{name},{tokens},{tokens / degree}\n" for name in names for tokens in (1, 3))
        points = [(c, k, d, x) for c in (0, 4) for k in (0, 8) for d in (0, 2) for x in (0, 16)]
        # a second, finer grid in the same file leaves holes between both
        attention = "".join(f"{c},{k},{d},{x},{c + d}\n" for c, k, d, x in [*points, (6, 12, 2, 24), (3, 8, 2, 16)])
        (part / "dense.csv").write_text("layer,tokens,time_us\n" + rows, "utf-8")
        (part / "per_sequence.csv").write_text("layer,sequences,time_us\nlm_head,1,5\nlm_head,2,7\n", "utf-8")
        header = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n"
        (part / "attention.csv").write_text(header + attention, "utf-8")
    return folder


def read_degree(folder: Path, degree: int, all_reduce: AllReduce | None = None) -> StepTimes:
    return read_profile(
        folder, layers=2, hidden=8, tensor_parallel=degree, max_tokens=6, max_requests=3, all_reduce=all_reduce
    )


def test_a_profile_holds_a_folder_for_each_tensor_parallelism(tmp_path: Path) -> None:
    """Stable operators come from tp1, the doubling grid of two is used, and an all-reduce is added, never guessed."""
    folder = write_profile(tmp_path / "p")
    link = AllReduce(bytes_by_gpus={2: np.array([1.0, 1e6])}, seconds_by_gpus={2: np.array([1e-3, 1e-3])})
    one, two = read_degree(folder, 1), read_degree(folder, 2, link)
    norms = (2 * 2 + 1) * 1e-6
    assert two.dense[1] - 5 * 1e-3 == pytest.approx((one.dense[1] - norms) / 2 + norms)
    assert list(one.axes[0, : one.axis_lengths[0]]) == [0, 4]
    with pytest.raises(UnfoldError, match="no all-reduce between 2 GPUs"):
        read_degree(folder, 2)
    with pytest.raises(UnfoldError, match="the profile has no tp4"):
        read_degree(folder, 4, link)
    (folder / "tp1" / "moe.csv").write_text("x\n", "utf-8")
    with pytest.raises(UnfoldError, match="mixture of experts"):
        read_degree(folder, 1)


def test_sizes_beyond_a_profile_are_listed(tmp_path: Path) -> None:
    """A profile of 2 decodes of 16 tokens and prompts of 12 is extrapolated for more, and names its ends."""
    times = read_degree(write_profile(tmp_path / "p"), 1)
    assert find_profile_ends(times, max_requests=2, max_context=12) == ()
    assert find_profile_ends(times, max_requests=3, max_context=20) == (
        TableEnd(operator="attention of prompts", size="context", measured=12, needed=20),
        TableEnd(operator="attention of decodes", size="requests", measured=2, needed=3),
        TableEnd(operator="attention of decodes", size="context", measured=16, needed=20),
    )
