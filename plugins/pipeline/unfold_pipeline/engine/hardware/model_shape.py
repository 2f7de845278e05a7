"""The shape of a dense decoder-only transformer."""

from __future__ import annotations

from dataclasses import dataclass

BYTES_PER_VALUE = {"bf16": 2.0, "fp8": 1.0, "int4": 0.5 + 2.5 / 128, "nvfp4": 0.5 + 1 / 16}
"""Bytes of a weight; 4-bit weights have a scale and a zero for 128 values (AWQ, GPTQ), or a scale for 16 (NVFP4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a dense transformer with grouped-query attention.

    Attributes:
        layers: decoder layers.
        hidden: width of the residual stream.
        heads: query heads.
        kv_heads: key and value heads.
        head: values of one head.
        inner: width of the MLP.
        vocabulary: tokens of the vocabulary.
        is_tied: whether the embedding is the LM head.
        is_unusual: whether the model has experts or another attention, so that the sizes do not give its memory.
        mlp_matrices: matrices of the MLP: 3 with a gate, 2 without.
        stored_precision: precision of the weights in the checkpoint, if its config states one.
        window: tokens that some layers attend to; 0 if all layers attend to the whole context.
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
    window: int = 0

    @property
    def linear_parameters(self) -> int:
        """Parameters of all layers, which the precision of the weights applies to."""
        attention = self.hidden * self.head * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + self.mlp_matrices * self.hidden * self.inner)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of embedding and LM head, which stay in 16 bits."""
        return self.vocabulary * self.hidden * (1 if self.is_tied else 2)

    def weight_bytes(self, precision: str) -> int:
        """Return the bytes of all weights."""
        return round(self.linear_parameters * BYTES_PER_VALUE[precision]) + self.embedding_parameters * 2

    def kv_bytes_per_token(self, tensor_parallel: int, kv_precision: str) -> int:
        """Return the bytes that a token occupies on each GPU; KV heads are copied where there are more GPUs."""
        heads = -(-self.kv_heads // tensor_parallel)
        return round(2 * self.layers * heads * self.head * BYTES_PER_VALUE[kv_precision])
