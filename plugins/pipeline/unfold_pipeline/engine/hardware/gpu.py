"""GPUs by name, from the vendors' data sheets, and the KV cache for which a model's weights leave memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from unfold_pipeline.engine.hardware.model_shape import KvLayout, ModelShape

MIB = 1 << 20
BLOCK_TOKENS = 16
ENDLESS = 1 << 40
"""Tokens of a request if all layers keep a window only."""
ONE_GROUP = KvLayout(layers=1, group_layers=1)
ENGINE_BYTES = 3e9
"""What vLLM keeps for activations, CUDA graphs and its communication; measured values lie between 2 and 4 GB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU.

    Attributes:
        name: Its name.
        memory_bytes: Memory that a process sees.
        bytes_per_s: Bandwidth of the memory.
        bf16_flops: Dense peak rate in 16 bits.
        fp8_flops: Dense peak rate in 8 bits; the 16-bit rate where the GPU has no 8-bit units.
        fp4_flops: Dense peak rate in 4 bits; 0 where the GPU has no 4-bit units, and computes in 16 bits.
    """

    name: str
    memory_bytes: float
    bytes_per_s: float
    bf16_flops: float
    fp8_flops: float
    fp4_flops: float = 0.0

    def flops(self, precision: str) -> float:
        """Return the peak rate of weights in a precision; products of int4 weights are computed in 16 bits."""
        if precision == "nvfp4":
            return self.fp4_flops or self.bf16_flops
        return self.fp8_flops if precision == "fp8" else self.bf16_flops


def list_gpus() -> Mapping[str, Gpu]:
    """Return the GPUs that are known by name.

    Source: data sheets of the vendors; memory as ``nvidia-smi`` reports it.
    """
    # name: MiB, GB/s, TFLOPS in 16 bits, TFLOPS in 8 bits
    sheets = {
        "a10": (23_028, 600, 125, 125),
        "a100_40gb": (40_960, 1_555, 312, 312),
        "a100_80gb": (81_920, 2_039, 312, 312),
        "a100_pcie": (81_920, 1_935, 312, 312),
        "a100_sxm": (81_920, 2_039, 312, 312),
        "a10g": (23_028, 600, 70, 70),
        "a40": (46_068, 696, 150, 150),
        "a6000": (49_140, 768, 155, 155),
        "b200_sxm": (183_359, 8_000, 2_250, 4_500),
        "gh200": (97_871, 4_000, 989, 1_979),
        "h100_nvl": (95_830, 3_938, 835, 1_671),
        "h100_pcie": (81_559, 2_039, 756, 1_513),
        "h100_sxm": (81_559, 3_352, 989, 1_979),
        "h20": (97_871, 4_000, 148, 296),
        "h200_sxm": (143_771, 4_800, 989, 1_979),
        "l4": (23_034, 300, 121, 242),
        "l40": (46_068, 864, 181, 362),
        "l40s": (46_068, 864, 362, 733),
        "mi300x": (196_592, 5_300, 1_307, 2_615),
        "rtx3090": (24_576, 936, 71, 71),
        "rtx4090": (24_564, 1_008, 165, 330),
        "rtx5090": (32_607, 1_792, 209, 419),
        "rtx6000ada": (49_140, 960, 364, 728),
        "rtxpro6000": (97_887, 1_792, 504, 1_007),
    }
    fp4_tflops = {"b200_sxm": 9_000, "rtx5090": 1_676, "rtxpro6000": 2_015}
    return {
        name: Gpu(
            name=name,
            memory_bytes=mib * MIB,
            bytes_per_s=gb * 1e9,
            bf16_flops=bf16 * 1e12,
            fp8_flops=fp8 * 1e12,
            fp4_flops=fp4_tflops.get(name, 0) * 1e12,
        )
        for name, (mib, gb, bf16, fp8) in sheets.items()
    }


ALIASES = {
    "a10080gbpcie": "a100_pcie", "a100pcie40gb": "a100_40gb", "a100sxm440gb": "a100_40gb", "a100sxm480gb": "a100_sxm",
    "gh200480gb": "gh200", "h10080gbhbm3": "h100_sxm", "h100sxm5": "h100_sxm", "rtx6000adageneration": "rtx6000ada",
    "rtxa6000": "a6000", "rtxpro6000blackwellserveredition": "rtxpro6000",
    "rtxpro6000blackwellworkstationedition": "rtxpro6000",
}  # fmt: skip
"""Names that ``nvidia-smi`` prints, without separators and makers."""


def find_gpu(name: str) -> Gpu | None:
    """Return a GPU by its name, that of ``nvidia-smi``, or the only part that matters: ``H100`` is ``h100_sxm``."""
    gpus, key = list_gpus(), _normalize(name)
    if key in ALIASES:
        return gpus[ALIASES[key]]
    exact = [gpu for gpu_name, gpu in gpus.items() if _normalize(gpu_name) == key]
    if exact:
        return exact[0]
    return next((gpus[known] for known in gpus if known.endswith("_sxm") and known.removesuffix("_sxm") == key), None)


def _normalize(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return plain.removeprefix("nvidia").removeprefix("amd").removeprefix("geforce")


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCache:
    """The KV cache of an engine.

    Attributes:
        num_blocks: Blocks, at least 0; each holds the tokens of a group of layers.
        is_measured: Whether the count was measured, not estimated from memory.
        layout: The groups.
    """

    num_blocks: int
    is_measured: bool
    layout: KvLayout = ONE_GROUP

    @property
    def tokens(self) -> int:
        """Tokens that fit with the blocks of all groups, as vLLM logs it; more where some keep a window only."""
        return self.num_blocks // self.layout.groups * BLOCK_TOKENS

    def find_longest_request(self, budget: int) -> int:
        """Return the tokens of the longest request that fits alone.

        Args:
            budget: Tokens of a step, for which layers with a window need room too.
        """
        layout, blocks = self.layout, self.num_blocks
        most = -(-(layout.window - 1 + budget) // BLOCK_TOKENS) + 1
        if not layout.window_groups or blocks <= most * layout.groups:
            return blocks // layout.groups * BLOCK_TOKENS
        if not layout.full_groups:
            return ENDLESS
        return (blocks - most * layout.window_groups) // layout.full_groups * BLOCK_TOKENS

    def keep_whole_context(self) -> KvCache:
        """Return the cache of the same memory if all layers keep the whole context, as engines with a connector do."""
        layout = self.layout
        if not layout.window_groups:
            return self
        blocks = self.num_blocks * layout.group_layers // layout.layers
        whole = KvLayout(layers=layout.layers, group_layers=layout.layers)
        return replace(self, num_blocks=blocks, layout=whole)


def estimate_kv_cache(
    model: ModelShape, gpu: Gpu, *, tensor_parallel: int, precision: str, kv_precision: str, utilization: float
) -> KvCache:
    """Estimate the blocks of the KV cache: memory that vLLM may use, less weights and its own use."""
    left = gpu.memory_bytes * utilization - model.weight_bytes(precision) / tensor_parallel - ENGINE_BYTES
    layout = model.kv_layout
    block_bytes = BLOCK_TOKENS * model.kv_bytes_per_token(tensor_parallel, kv_precision, layout.group_layers)
    return KvCache(num_blocks=max(0, int(left // block_bytes)), is_measured=False, layout=layout)
