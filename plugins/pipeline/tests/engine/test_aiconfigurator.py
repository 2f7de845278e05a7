"""Operator tables of AIConfigurator: sums over layers, holes that are errors, heads that stand for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unfold_pipeline.engine.hardware.gpu import find_gpu
from unfold_pipeline.engine.hardware.model_shape import ModelShape
from unfold_pipeline.engine.simulation.engine_inputs import StepTimes
from unfold_pipeline.engine.step_times.aiconfigurator import (
    KERNEL_LAUNCH_S,
    REQUEST_S,
    SMALL_KERNELS,
    OperatorDatabase,
    _extend_prompt,
    build_step_times,
    find_table_ends,
    find_tables,
    read_database,
)
from unfold_pipeline.engine.step_times.columns import TableEnd
from unfoldkit.api import UnfoldError

MODEL = ModelShape(layers=2, hidden=512, heads=8, kv_heads=2, head=64, inner=1024, vocabulary=2048)


def write_tables(folder: Path, *, hole: bool = False, all_reduce: bool = True) -> Path:
    """Write tables in which a product of n and k takes n k / 1e6 ms, and attention one microsecond a token."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = (256, 512, 1024, 2048)
    gemm = [
        f"h,vllm,{kind},{m},{n},{k},{n * k / 1e6}"
        for kind in ("bfloat16", "fp8")
        for m in (1, 8, 64)
        for n in sizes
        for k in sizes
        if not (hole and (n, k) == (2048, 512))
    ]
    context = [
        f"h,vllm,bfloat16,bfloat16,{heads},{kv},64,{isl},{isl / 1e3}"
        for heads, kv in ((8, 2), (4, 1))
        for isl in (1, 16, 64, 256)
    ]
    generation = [
        f"h,vllm,bfloat16,{heads},{kv},64,{batch},{step},{batch / 1e3}"
        for heads, kv in ((8, 2), (4, 1))
        for batch in (1, 2, 4, 8)
        for step in (1, 63, 255)
    ]
    texts = {
        "gemm.csv": ["system,backend,gemm_dtype,m,n,k,latency_ms", *gemm],
        "context_attention.csv": [
            "system,backend,attn_dtype,kv_cache_dtype,num_heads,num_key_value_heads,head_dim,isl,latency_ms",
            *context,
        ],
        "generation_attention.csv": [
            "system,backend,kv_cache_dtype,num_heads,num_key_value_heads,head_dim,batch_size,step,latency_ms",
            *generation,
        ],
    }
    if all_reduce:
        messages = [f"h,vllm,2,{size},{0.01}" for size in (128, 1 << 20)]
        texts["allreduce.csv"] = ["system,backend,num_gpus,message_size,latency_ms", *messages]
    for name, lines in texts.items():
        (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def read(folder: Path, backend: str = "vllm", *, head: int = 64) -> OperatorDatabase:
    return read_database(find_tables(folder, "h", backend), system="h", backend=backend, head=head)


def build(folder: Path, *, tensor_parallel: int = 1, backend: str = "vllm") -> StepTimes:
    gpu = find_gpu("H100")
    assert gpu is not None
    database = read(folder, backend)
    return build_step_times(
        database,
        MODEL,
        gpu,
        tensor_parallel=tensor_parallel,
        precision="bf16",
        kv_precision="bf16",
        max_tokens=64,
        max_requests=8,
        max_context=256,
    )


def test_a_step_is_the_sum_of_its_operators(tmp_path: Path) -> None:
    """Four products a layer, the LM head a request, and attention that counts tokens."""
    times = build(write_tables(tmp_path))
    products = (768 * 512 + 512 * 512 + 2048 * 512 + 512 * 1024) / 1e9
    small = 2 * SMALL_KERNELS * KERNEL_LAUNCH_S
    assert times.dense[1] == pytest.approx(2 * products + small, rel=0.01)
    assert times.sequence[3] == pytest.approx(2048 * 512 / 1e9 + 3 * REQUEST_S)
    decodes = int(np.flatnonzero(times.axes[2] == 4)[0])
    assert times.attention[0, 0, decodes, 1] == pytest.approx(2 * 4e-6)
    chunk = int(np.flatnonzero(times.axes[0] == 64)[0])
    assert times.attention[chunk, 0, 0, 0] == pytest.approx(2 * 64e-6)


def test_tensor_parallel_adds_measured_all_reduces(tmp_path: Path) -> None:
    """2 L + 1 all-reduces a step come from the table, and nothing replaces a missing one."""
    one, two = build(write_tables(tmp_path / "a")), build(write_tables(tmp_path / "a"), tensor_parallel=2)
    assert two.dense[1] > 5 * 1e-5
    assert one.dense[1] != two.dense[1]
    with pytest.raises(UnfoldError, match="no all-reduce between 2 GPUs was measured"):
        build(write_tables(tmp_path / "b", all_reduce=False), tensor_parallel=2)
    with pytest.raises(UnfoldError, match="no all-reduce between 4 GPUs was measured"):
        build(write_tables(tmp_path / "c"), tensor_parallel=4)


def test_a_hole_in_the_needed_range_is_an_error(tmp_path: Path) -> None:
    """A shape without its four corners is named."""
    with pytest.raises(UnfoldError, match="hole at n 2048, k 512"):
        build(write_tables(tmp_path, hole=True))


def drop_column(folder: Path, name: str) -> None:
    """Write the tables of a folder again without a column."""
    for path in folder.glob("*.csv"):
        rows = [line.split(",") for line in path.read_text("utf-8").splitlines()]
        if name in rows[0]:
            column = rows[0].index(name)
            lines = [",".join(cells[:column] + cells[column + 1 :]) for cells in rows]
            path.write_text("\n".join(lines) + "\n", "utf-8")


def test_heads_of_another_width_are_refused(tmp_path: Path) -> None:
    """Rows of heads of 64 values serve no other width; without a width in the table they are of 128 values."""
    folder = write_tables(tmp_path)
    with pytest.raises(UnfoldError, match="no rows of 128"):
        read(folder, head=128)
    drop_column(folder, "head_dim")
    assert read(folder, head=128).context
    with pytest.raises(UnfoldError, match="of 128 values a head, not of 64") as error:
        read(folder)
    assert "context_attention.csv" in str(error.value)


@pytest.mark.parametrize(
    ("requests", "context", "message"),
    [
        (17, 256, "generation attention: the table ends at requests 8, and 17 are needed"),
        (8, 2049, "context attention: the table ends at context 256, and 2,049 are needed"),
    ],
)
def test_sizes_far_beyond_a_table_are_refused(tmp_path: Path, requests: int, context: int, message: str) -> None:
    """The error names file, operator, the end of the table and what is needed."""
    database = read(write_tables(tmp_path))
    kinds: dict[str, Any] = {"tensor_parallel": 1, "kv_precision": "bf16"}
    with pytest.raises(UnfoldError, match=message) as error:
        find_table_ends(database, MODEL, **kinds, max_requests=requests, max_context=context)
    assert "attention.csv" in str(error.value)


def test_sizes_a_little_beyond_a_table_are_listed(tmp_path: Path) -> None:
    """Within twice the requests and eight times the context, steps are extrapolated and the ends returned."""
    database = read(write_tables(tmp_path))
    kinds: dict[str, Any] = {"tensor_parallel": 1, "kv_precision": "bf16"}
    assert find_table_ends(database, MODEL, **kinds, max_requests=8, max_context=256) == ((), 8 * 256)
    ends, _ = find_table_ends(database, MODEL, **kinds, max_requests=9, max_context=300)
    assert ends == (
        TableEnd(operator="context attention", size="context", measured=256, needed=300),
        TableEnd(operator="generation attention", size="requests", measured=8, needed=9),
        TableEnd(operator="generation attention", size="context", measured=256, needed=300),
    )


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_longer_prompts_lie_between_the_last_doubling_and_the_square(power: float) -> None:
    """Beyond the table, prompts cost at least as much a token as its last, and at most their square."""
    sizes = np.array([16.0, 32.0, 64.0])
    seconds = sizes**power
    longer = _extend_prompt(sizes, seconds, np.array([128.0, 512.0]))
    assert (longer <= seconds[-1] * (np.array([128.0, 512.0]) / 64) ** 2 + 1e-9).all()
    assert (longer >= seconds[-1] * np.array([128.0, 512.0]) / 64 - 1e-9).all()
    if power == 2:
        np.testing.assert_allclose(longer, np.array([128.0, 512.0]) ** 2)


def test_a_latency_of_zero_is_refused(tmp_path: Path) -> None:
    """A kernel takes time: a zero is a failed measurement, and would make its shape free."""
    folder = write_tables(tmp_path)
    path = folder / "gemm.csv"
    head, first, *rows = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([head, f"{first.rpartition(',')[0]},0.0", *rows]) + "\n", "utf-8")
    with pytest.raises(UnfoldError, match=r"line 2: a latency of 0 is not a measurement \(leave the row out\)"):
        build(folder)


def test_another_backend_is_refused_with_what_there_is(tmp_path: Path) -> None:
    """Rows of another engine never stand for this one."""
    with pytest.raises(UnfoldError, match="no rows of h trtllm") as error:
        build(write_tables(tmp_path), backend="trtllm")
    assert "h vllm" in error.value.diagnostics[0].hint


def test_a_table_without_a_column_of_backends_is_refused_for_another_system(tmp_path: Path) -> None:
    """The hint names the systems of a table that has no backends."""
    folder = write_tables(tmp_path)
    drop_column(folder, "backend")
    with pytest.raises(UnfoldError, match="no rows of other vllm") as error:
        read_database(find_tables(folder, "other", "vllm"), system="other", backend="vllm", head=64)
    assert error.value.diagnostics[0].hint == "h"


def test_parquet_and_csv_give_the_same_times(tmp_path: Path) -> None:
    """The tables may be Parquet files in the folders of their source."""
    pytest.importorskip("pyarrow")
    from pyarrow import csv, parquet

    folder = write_tables(tmp_path / "csv")
    for path in folder.glob("*.csv"):
        target = tmp_path / "data" / "h" / path.stem / "vllm" / "0.19.0" / f"{path.stem}_perf.parquet"
        target.parent.mkdir(parents=True)
        parquet.write_table(csv.read_csv(path), target)
    np.testing.assert_allclose(build(tmp_path / "data" / "h").dense, build(folder).dense)
