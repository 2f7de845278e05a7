"""Step times without any measurement: the larger of bytes over bandwidth and operations over peak rate.

Both reach a fraction of the data sheet's figure. This is the least certain source; its interval is the widest.
"""

from __future__ import annotations

import numpy as np

from unfold_pipeline.engine.hardware.gpu import Gpu
from unfold_pipeline.engine.hardware.model_shape import ModelShape
from unfold_pipeline.engine.simulation.engine_inputs import StepTimes, pad_axes
from unfold_pipeline.engine.step_times.aiconfigurator import BANDWIDTH_SHARE, KERNEL_LAUNCH_S
from unfold_pipeline.engine.step_times.all_reduce import AllReduce, compute_step_all_reduces

FLOPS_SHARE = 0.6
KERNELS_PER_LAYER = 10


def build_roofline(
    model: ModelShape,
    gpu: Gpu,
    *,
    tensor_parallel: int,
    precision: str,
    kv_precision: str,
    max_tokens: int,
    max_requests: int,
    max_context: int,
    all_reduce: AllReduce | None = None,
    key: str = "",
) -> StepTimes:
    """Build step times from the data sheet of a GPU; ``key`` locates them in the spec, for the error.

    Source: Williams et al., Roofline, CACM 2009; the shares are typical of serving engines.

    Raises:
        UnfoldError: Several GPUs without a measured all-reduce.
    """
    bytes_per_s, flops = gpu.bytes_per_s * BANDWIDTH_SHARE, gpu.flops(precision) * FLOPS_SHARE
    tokens, requests = np.arange(1, max_tokens + 1.0), np.arange(1, max_requests + 1.0)
    dense, sequence = np.zeros(max_tokens + 1), np.zeros(max_requests + 1)
    parameters = model.linear_parameters / tensor_parallel
    dense[1:] = np.maximum(
        parameters * model.bytes_per_weight(precision) / bytes_per_s, 2 * parameters * tokens / flops
    )
    values = model.layers * (8 * model.hidden + 3 * model.inner / tensor_parallel)
    dense[1:] += 2 * values * tokens / bytes_per_s + model.layers * KERNELS_PER_LAYER * KERNEL_LAUNCH_S
    dense[1:] += compute_step_all_reduces(
        all_reduce, tensor_parallel, tokens, layers=model.layers, hidden=model.hidden, key=key
    )
    head = model.vocabulary * model.hidden / tensor_parallel
    bf16_flops = gpu.bf16_flops * FLOPS_SHARE
    sequence[1:] = np.maximum(2 * head / bytes_per_s, 2 * head * requests / bf16_flops)
    decodes, contexts = np.array([0.0, max_requests]), np.array([0.0, max(max_context, 1)])
    history = contexts
    # attention is bilinear in chunk and history but for the triangle of the chunk, which a finer axis follows
    chunks = np.unique(np.r_[0.0, np.geomspace(1, max(max_tokens, 2), 24)])
    query = 4 * model.layers * model.heads / tensor_parallel * model.head
    prefill = query * chunks[:, None] * (history[None, :] + chunks[:, None] / 2) / bf16_flops
    kv_bytes = model.kv_bytes_per_token(tensor_parallel, kv_precision)
    decode = decodes[:, None] * contexts[None, :] * kv_bytes / bytes_per_s
    padded, lengths = pad_axes([chunks, history, decodes, contexts])
    attention = np.ascontiguousarray(prefill[:, :, None, None] + decode[None, None, :, :])
    return StepTimes(dense=dense, sequence=sequence, axes=padded, axis_lengths=lengths, attention=attention)
