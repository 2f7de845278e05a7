"""Statistics and configuration of a model in the form of Triton's extensions, which perf_analyzer reads."""

from __future__ import annotations

from typing import Any

from unfoldkit.serving.model import Field
from unfoldkit.serving.oip.inference import Endpoint

NANOSECONDS = 1e9


def describe_statistics(endpoint: Endpoint) -> dict[str, Any]:
    """Return what a model answered so far: numbers of requests, rows and batches, and nanoseconds.

    Queue time is what requests took beyond their batches. Requests in one batch share its time, so their sums exceed
    the processor time.
    """
    metrics = endpoint.metrics
    tally = metrics.requests
    success = tally.codes.get(200, 0)
    failed = sum(tally.codes.values()) - success
    batches, busy_s = _read_histogram(metrics.predict)
    busy_ns, total_ns = int(busy_s * NANOSECONDS), int(tally.seconds * NANOSECONDS)
    return {
        "name": endpoint.model.name,
        "version": endpoint.model.version,
        "last_inference": int(tally.last_s * 1e3),
        "inference_count": int(_read_counter(metrics.rows)),
        "execution_count": batches,
        "inference_stats": {
            "success": {"count": success, "ns": total_ns},
            "fail": {"count": failed, "ns": 0},
            "queue": {"count": success, "ns": max(total_ns - busy_ns, 0)},
            "compute_input": {"count": success, "ns": 0},
            "compute_infer": {"count": success, "ns": min(busy_ns, total_ns)},
            "compute_output": {"count": success, "ns": 0},
        },
    }


def describe_config(endpoint: Endpoint) -> dict[str, Any]:
    """Return the configuration of a model: the first dimension of every tensor is the batch."""
    model = endpoint.model
    return {
        "name": model.name,
        "platform": "unfoldkit",
        "backend": "unfoldkit",
        "max_batch_size": endpoint.batcher.limits.batch_rows,
        "input": [_describe_field(item) for item in model.inputs],
        "output": [_describe_field(item) for item in model.outputs],
    }


def _describe_field(item: Field) -> dict[str, Any]:
    datatype = "STRING" if item.datatype == "BYTES" else item.datatype
    return {"name": item.name, "data_type": f"TYPE_{datatype}", "dims": list(item.shape) or [1]}


def _read_counter(counter: Any) -> float:
    return float(sum(sample.value for sample in _samples(counter) if sample.name == "_total"))


def _read_histogram(histogram: Any) -> tuple[int, float]:
    values = {sample.name: sample.value for sample in _samples(histogram) if sample.name in ("_count", "_sum")}
    return int(values.get("_count", 0)), float(values.get("_sum", 0.0))


def _samples(metric: Any) -> Any:
    # a metric with its labels resolved has no public way to read it
    return metric._child_samples()  # noqa: SLF001
