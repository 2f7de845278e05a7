"""The shape of a dense decoder-only transformer."""

from __future__ import annotations

from dataclasses import dataclass

BYTES_PER_VALUE = {"bf16": 2.0, "fp8": 1.0, "int4": 0.5 + 2.5 / 128, "nvfp4": 0.5 + 1 / 16}
"""Bytes of a value; 4-bit weights have a scale and a zero for 128 values (AWQ, GPTQ), or a scale for 16 (NVFP4)."""
INT4_BYTES, SCALE_BYTES, USUAL_GROUP = 0.5, 2.5, 128


MAX_PADDING = 1.25
"""Ratio of the layers of two kinds below which vLLM pads the fewer ones instead of dividing the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """How layers share the blocks of the KV cache: in groups of as many layers, each with blocks of its own.

    Attributes:
        layers: Layers of the model.
        group_layers: Layers of a group; a last group of each kind may have fewer, and wastes the rest.
        full_groups: Groups that keep the whole context.
        window_groups: Groups that keep a window.
        window: Tokens that those keep; 0 without such groups.
    """

    layers: int
    group_layers: int
    full_groups: int = 1
    window_groups: int = 0
    window: int = 0

    @property
    def groups(self) -> int:
        """Groups of both kinds."""
        return self.full_groups + self.window_groups


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a dense transformer with grouped-query attention.

    Attributes:
        layers: Decoder layers.
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key and value heads.
        head: Values of one head.
        inner: Width of the MLP.
        vocabulary: Tokens of the vocabulary.
        is_tied: Whether the embedding is the LM head.
        is_unusual: Whether the model has experts or another attention, so that the sizes do not give its memory.
        mlp_matrices: Matrices of the MLP: 3 with a gate, 2 without.
        stored_precision: Precision of the weights in the checkpoint, if its config states one.
        weight_group: int4 weights with a scale and a zero of their own; 0 for a whole channel.
        window: Tokens that some layers attend to; 0 if all layers attend to the whole context.
        window_layers: Layers that do.
        max_context: Tokens of prompt and answer that its config allows; 0 if it states none.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocabulary: int
    is_tied: bool = False
    is_unusual: bool = False
    mlp_matrices: int = 3
    stored_precision: str = ""
    weight_group: int = USUAL_GROUP
    window: int = 0
    window_layers: int = 0
    max_context: int = 0

    @property
    def kv_layout(self) -> KvLayout:
        """The groups of layers in the KV cache, as vLLM's hybrid KV cache manager forms them.

        Source: vllm-project/vllm, ``vllm/v1/core/kv_cache_utils.py``.
        """
        full = self.layers - self.window_layers
        if not self.window_layers:
            return KvLayout(layers=self.layers, group_layers=self.layers)
        least, most = sorted((full, self.window_layers))
        size = most if not least or most < MAX_PADDING * least else least
        return KvLayout(
            layers=self.layers,
            group_layers=size,
            full_groups=-(-full // size),
            window_groups=-(-self.window_layers // size),
            window=self.window,
        )

    @property
    def linear_parameters(self) -> int:
        """Parameters of all layers, which the precision of the weights applies to."""
        attention = self.hidden * self.head * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + self.mlp_matrices * self.hidden * self.inner)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of embedding and LM head, which stay in 16 bits."""
        return self.vocabulary * self.hidden * (1 if self.is_tied else 2)

    def bytes_per_weight(self, precision: str) -> float:
        """Return the bytes of a weight of the layers, with its part of a scale."""
        if precision != "int4" or self.weight_group == USUAL_GROUP:
            return BYTES_PER_VALUE[precision]
        return INT4_BYTES + (SCALE_BYTES / self.weight_group if self.weight_group else 0.0)

    def weight_bytes(self, precision: str) -> int:
        """Return the bytes of all weights."""
        return round(self.linear_parameters * self.bytes_per_weight(precision)) + self.embedding_parameters * 2

    def kv_bytes_per_token(self, tensor_parallel: int, kv_precision: str, layers: int | None = None) -> int:
        """Return the bytes that a token occupies on each GPU; KV heads are copied where there are more GPUs.

        Args:
            tensor_parallel: GPUs of an engine.
            kv_precision: Precision of the KV cache.
            layers: Layers that count; ``None`` for all.
        """
        heads = -(-self.kv_heads // tensor_parallel)
        count = self.layers if layers is None else layers
        return round(2 * count * heads * self.head * BYTES_PER_VALUE[kv_precision])
