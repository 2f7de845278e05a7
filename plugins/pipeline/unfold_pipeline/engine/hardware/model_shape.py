"""The shape of a dense decoder-only transformer, read from its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfoldkit.api import user_error
from unfoldkit.safe_io.files import parse_object, read_bytes

BYTES_PER_VALUE = {"bf16": 2, "fp8": 1}
CONFIG_KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head"),
    "inner": ("intermediate_size", "n_inner", "ffn_dim"),
    "vocabulary": ("vocab_size",),
}
EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")
OTHER_ATTENTION_KEYS = ("kv_lora_rank", "linear_num_key_heads", "mamba_d_ssm", "ssm_cfg")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a dense transformer with grouped-query attention and a gated MLP.

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

    @property
    def linear_parameters(self) -> int:
        """Parameters of all layers, which the precision of the weights applies to."""
        attention = self.hidden * self.head * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of embedding and LM head, which stay in 16 bits."""
        return self.vocabulary * self.hidden * (1 if self.is_tied else 2)

    def weight_bytes(self, precision: str) -> int:
        """Return the bytes of all weights."""
        return self.linear_parameters * BYTES_PER_VALUE[precision] + self.embedding_parameters * 2

    def kv_bytes_per_token(self, tensor_parallel: int, kv_precision: str) -> int:
        """Return the bytes that a token occupies on each GPU; KV heads are copied where there are more GPUs."""
        heads = -(-self.kv_heads // tensor_parallel)
        return 2 * self.layers * heads * self.head * BYTES_PER_VALUE[kv_precision]


def read_model_config(path: Path, *, is_profiled: bool = False) -> ModelShape:
    """Read the ``config.json`` of a Hugging Face model; its architecture does not matter where it was profiled.

    Raises:
        UnfoldError: a size is missing, or the model is no dense transformer with grouped-query attention.
    """
    config = parse_object(read_bytes(path), str(path))
    nested = config.get("text_config")
    if isinstance(nested, dict):
        config = {**config, **nested}
    experts = next((key for key in EXPERT_KEYS if _count(config, key) > 1), None)
    if experts is not None and not is_profiled:
        message = f"the model is a mixture of experts ({experts}), which dense operator tables do not describe"
        raise user_error(message, file=str(path), hint="a dense model, or measure the engine: unfold profile")
    other = next((key for key in OTHER_ATTENTION_KEYS if config.get(key) is not None), None)
    if other is not None and not is_profiled:
        raise user_error(f"the model's attention is not grouped-query attention ({other})", file=str(path))
    sizes = {name: _size(config, keys, path) for name, keys in CONFIG_KEYS.items()}
    head = _count(config, "head_dim") or sizes["hidden"] // sizes["heads"]
    if not head:
        message = f"the model has {sizes['hidden']} values for {sizes['heads']} heads"
        raise user_error(message, file=str(path), key="head_dim")
    return ModelShape(
        **sizes,
        kv_heads=_count(config, "num_key_value_heads") or sizes["heads"],
        head=head,
        is_tied=config.get("tie_word_embeddings") is True,
        is_unusual=experts is not None or other is not None,
    )


def _size(config: Mapping[str, Any], keys: tuple[str, ...], path: Path) -> int:
    value = next((count for key in keys if (count := _count(config, key)) > 0), 0)
    if not value:
        raise user_error(f"the model's config lacks {keys[0]}", file=str(path), key=keys[0], hint="a whole number")
    return value


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40 else 0
