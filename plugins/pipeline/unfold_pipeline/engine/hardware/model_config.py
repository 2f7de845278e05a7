"""Read the ``config.json`` of a Hugging Face model: its sizes, what makes it no dense transformer, its precision.

The names of keys follow ``transformers``; the number of KV heads follows the rules of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unfold_pipeline.engine.hardware.model_shape import USUAL_GROUP, ModelShape
from unfoldkit.api import user_error
from unfoldkit.safe_io.files import parse_object, read_bytes

CONFIG_KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "inner": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "vocabulary": ("vocab_size", "padded_vocab_size"),
}
LANGUAGE_MODEL_KEYS = ("text_config", "thinker_config", "llm_config", "language_config")
"""Sections with the language model of a model with images or speech; ``thinker_config`` has a ``text_config``."""
KV_HEADS_KEYS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "multi_query_group_num")
EXPERT_KEYS = (
    *("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts"),
    *("moe_intermediate_size", "n_experts"),
)
OTHER_ATTENTION_KEYS = (
    *("kv_lora_rank", "linear_num_key_heads", "linear_attn_config", "attn_type_list"),
    *("cross_attention_layers", "num_kv_shared_layers"),
)
RECURRENT_KEYS = (
    *("mamba_d_ssm", "mamba_d_state", "mamba_num_heads", "ssm_cfg", "ssm_state_size", "state_size"),
    *("hybrid_override_pattern", "conv_L_cache", "lru_width", "attention_hidden_size", "block_configs"),
    "num_key_value_heads_per_layer",
)
"""Layers without a KV cache, or of several sizes; ``layer_types`` decides where it is given."""
ATTENTION_LAYERS = frozenset({"attention", "full_attention", "sliding_attention", "chunked_attention", "global"})
ENCODER_SUFFIXES = (
    *("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    *("ForMultipleChoice", "ForEmbedding", "Model"),
)
GENERATING_MODELS = ("LMHeadModel", "ChatGLMModel")
"""Endings of architectures that generate text, although their name ends as that of a model without an LM head."""
MAX_ROPE_FACTOR = 1000.0
UNGATED = frozenset(
    {
        *("apertus", "arcee", "bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj"),
        *("mpt", "nemotron", "opt", "persimmon", "phi", "refinedweb", "refinedwebmodel", "starcoder2", "xglm"),
    }
)
"""Types of models with two matrices in the MLP, of four times the width unless they state another."""
TIED = frozenset(
    {
        *("bloom", "cohere", "cohere2", "falcon", "gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "gpt_bigcode"),
        *("gpt_neo", "mpt", "opt", "starcoder2"),
    }
)
"""Types of models in which the embedding is the LM head unless they state otherwise."""
TEXT_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "gemma3_text": {
        "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    },
    "llama": {
        "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "mistral": {
        "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
}  # fmt: skip
"""What ``transformers`` leaves out of the ``text_config`` of a model with images, as it is the default of its type."""
WINDOW_PATTERNS: Mapping[str, int] = {
    "cohere2": 4, "exaone4": 4, "gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gpt_oss": 2,
}  # fmt: skip
"""Types of models in which every n-th layer attends to the whole context unless their config states another pattern."""
UNUSED_WINDOWS = ("qwen2", "qwen3")
"""Beginnings of types of models which state a window that they use only with ``use_sliding_window``."""
FOUR_BIT_METHODS = frozenset({"awq", "gptq", "awq_marlin", "gptq_marlin", "auto-round"})


def read_model_config(path: Path, *, is_profiled: bool = False) -> ModelShape:
    """Read the ``config.json`` of a Hugging Face model; its architecture does not matter where it was profiled.

    Raises:
        UnfoldError: A size is missing, the model is no dense decoder with grouped-query attention, or its weights are
            stored in a precision that is not known.
    """
    file = str(path)
    config = parse_object(read_bytes(path), file)
    config = _merge_language_model(config)
    experts = _find_experts(config)
    if experts and not is_profiled:
        message = f"the model is a mixture of experts ({experts}), which dense operator tables do not describe"
        raise user_error(message, file=file, hint="a dense model, or measure the engine: unfold profile")
    other = _find_other_attention(config)
    if other and not is_profiled:
        message = f"the model's attention is not grouped-query attention ({other})"
        raise user_error(message, file=file, hint="measure the engine: unfold profile")
    if config.get("is_encoder_decoder") is True and not is_profiled:
        message = "the model has an encoder and a decoder (is_encoder_decoder), which is not simulated"
        raise user_error(message, file=file, hint="measure the engine: unfold profile; or a stage with a latency")
    if (encoder := _find_encoder(config)) and not is_profiled:
        raise user_error(f"the model generates no text ({encoder})", file=file, hint="a stage with a latency")
    kind = str(config.get("model_type", "")).lower()
    sizes = {name: _read_size(config, keys, path) for name, keys in CONFIG_KEYS.items() if name != "inner"}
    inner = _first_count(config, CONFIG_KEYS["inner"]) or (4 * sizes["hidden"] if kind in UNGATED else 0)
    if not inner:
        inner = _read_size(config, CONFIG_KEYS["inner"], path)
    if kind == "qwen":  # the first Qwen counts both matrices of the gate
        inner //= 2
    head = _first_count(config, ("head_dim", "kv_channels")) or sizes["hidden"] // sizes["heads"]
    if not head:
        message = f"the hidden size {sizes['hidden']} is less than the {sizes['heads']} heads"
        raise user_error(message, file=file, key="head_dim")
    window, window_layers = _find_window(config, kind, sizes["layers"])
    return ModelShape(
        **sizes,
        inner=inner,
        kv_heads=_count_kv_heads(config, kind) or sizes["heads"],
        head=head,
        is_tied=config.get("tie_word_embeddings", kind in TIED) is True,
        is_unusual=bool(experts or other),
        mlp_matrices=2 if kind in UNGATED else 3,
        stored_precision="" if is_profiled else _find_precision(config, file),
        weight_group=_find_weight_group(config),
        window=window,
        window_layers=window_layers,
        max_context=_find_max_context(config),
    )


def _merge_language_model(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with that of the language model in it, where images or speech pass one.

    An architecture counts only if it is of the language model: that of the whole may end as that of an encoder.
    """
    for key in LANGUAGE_MODEL_KEYS:
        nested = config.get(key)
        if isinstance(nested, dict):
            outer = config if key in LANGUAGE_MODEL_KEYS[:1] else {**config, "architectures": None}
            kind = str(nested.get("model_type", "")).lower()
            return _merge_language_model({**outer, key: None, **TEXT_DEFAULTS.get(kind, {}), **nested})
    return config


def _find_experts(config: Mapping[str, Any]) -> str:
    """Return the key that states experts; empty for a dense model."""
    parts = [config, *(part for part in (config.get("ffn_config"),) if isinstance(part, Mapping))]
    return next((key for part in parts for key in EXPERT_KEYS if _is_above_one(part.get(key))), "")


def _is_above_one(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_above_one, value))
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


def _find_other_attention(config: Mapping[str, Any]) -> str:
    """Return the key that states layers other than grouped-query attention; empty without any."""
    direct = next((key for key in OTHER_ATTENTION_KEYS if config.get(key) not in (None, 0, [])), "")
    if direct:
        return direct
    layers = config.get("layer_types")
    if isinstance(layers, list):
        return "" if ATTENTION_LAYERS.issuperset(map(str, layers)) else "layer_types"
    return next((key for key in RECURRENT_KEYS if config.get(key) is not None), "")


def _find_encoder(config: Mapping[str, Any]) -> str:
    """Return the architecture that has no LM head, such as an encoder or an embedder; empty for one that has."""
    names = config.get("architectures")
    names = [str(name) for name in names] if isinstance(names, list) else []
    return next(
        (name for name in names if name.endswith(ENCODER_SUFFIXES) and not name.endswith(GENERATING_MODELS)), ""
    )


def _count_kv_heads(config: Mapping[str, Any], kind: str) -> int:
    """Return the KV heads by the rules of vLLM; 0 if the config states none."""
    if config.get("multi_query") is True and config.get("new_decoder_architecture") is not True:
        return 1
    attention = config.get("attn_config")
    nested = _count(attention, "kv_n_heads") if isinstance(attention, Mapping) else 0
    keys = KV_HEADS_KEYS if kind != "chatglm" or config.get("multi_query_attention") is True else KV_HEADS_KEYS[:-1]
    return nested or _first_count(config, keys)


def _find_window(config: Mapping[str, Any], kind: str, layers: int) -> tuple[int, int]:
    """Return the tokens of a sliding window, and the layers that attend to no more; 0 and 0 without any.

    Layers that attend to chunks count as others: vLLM keeps their whole context.
    """
    window = _count(config, "sliding_window")
    is_used = config.get("use_sliding_window", not kind.startswith(UNUSED_WINDOWS)) is not False
    count = _count_window_layers(config, kind, layers) if window and is_used else 0
    return (window, count) if count else (0, 0)


def _find_max_context(config: Mapping[str, Any]) -> int:
    """Return the context of a model as vLLM derives it: a scaled rotary embedding allows more positions."""
    positions = _first_count(config, ("max_position_embeddings", "n_positions", "seq_length"))
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(scaling, dict) or scaling.get("rope_type", scaling.get("type")) == "llama3":
        return positions
    factor = scaling.get("factor", 1)
    return int(positions * factor) if isinstance(factor, (int, float)) and 1 <= factor < MAX_ROPE_FACTOR else positions


def _count_window_layers(config: Mapping[str, Any], kind: str, layers: int) -> int:
    types = config.get("layer_types")
    if isinstance(types, list) and types:
        return [str(item) for item in types[:layers]].count("sliding_attention")
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, str) and pattern:
        return sum(pattern[index % len(pattern)].upper() == "L" for index in range(layers))
    period = _count(config, "sliding_window_pattern") or WINDOW_PATTERNS.get(kind, 0)
    if period:
        return layers - layers // period
    if kind.startswith(UNUSED_WINDOWS):
        return max(0, layers - _count(config, "max_window_layers"))
    return layers


def _find_precision(config: Mapping[str, Any], file: str) -> str:
    """Return the precision of quantized weights; empty for weights in 16 bits.

    Raises:
        UnfoldError: The weights are quantized by a method without simulated kernels.
    """
    quantization = config.get("quantization_config") or config.get("compression_config")
    if not quantization:
        return ""
    if not isinstance(quantization, Mapping):
        message = "the quantization of the weights is not an object"
        raise user_error(message, file=file, key="quantization_config", hint="{quant_method: METHOD, ...}")
    method = str(quantization.get("quant_method", "")).lower()
    algorithm = str(quantization.get("quant_algo") or quantization.get("format") or "").lower()
    weights, *others = _list_group_weights(quantization)
    if any((other.get("num_bits"), other.get("type")) != (weights.get("num_bits"), weights.get("type"))
           for other in others):  # fmt: skip
        hint = "the sizes of the model and its precision, or measure the engine: unfold profile"
        raise user_error("weights in several precisions are not simulated", file=file, key="config_groups", hint=hint)
    bits = _count(quantization, "bits") or _count(quantization, "w_bit") or _count(weights, "num_bits")
    is_float = weights.get("type") == "float" or "float" in algorithm
    if "nvfp4" in algorithm or (bits == 4 and is_float):
        return "nvfp4"
    if method in ("fp8", "fbgemm_fp8") or algorithm.startswith("fp8") or (bits == 8 and is_float):
        return "fp8"
    if bits == 4 and (method in FOUR_BIT_METHODS or weights):
        return "int4"
    name = " ".join(part for part in (method, algorithm, f"{bits} bits" if bits else "") if part)
    hint = "the sizes of the model and its precision, or measure the engine: unfold profile"
    raise user_error(f"weights quantized by {name or 'an unknown method'} are not simulated", file=file, hint=hint)


def _find_weight_group(config: Mapping[str, Any]) -> int:
    """Return how many 4-bit weights share a scale; 0 for those of a channel."""
    quantization = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(quantization, Mapping):
        return USUAL_GROUP
    parts = (quantization, *_list_group_weights(quantization))
    stated = [part.get(key) for part in parts for key in ("group_size", "q_group_size")]
    size = next((value for value in stated if isinstance(value, int)), None)
    if size is not None:
        return max(0, size)
    return 0 if parts[1].get("strategy") == "channel" else USUAL_GROUP


def _list_group_weights(quantization: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return how the weights of each group are stored; one empty entry without groups."""
    groups = quantization.get("config_groups")
    parts = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)] if isinstance(
        groups, Mapping) else []  # fmt: skip
    return [part for part in parts if isinstance(part, Mapping)] or [{}]


def _read_size(config: Mapping[str, Any], keys: tuple[str, ...], path: Path) -> int:
    value = _first_count(config, keys)
    if not value:
        raise user_error(f"the model's config lacks {keys[0]}", file=str(path), key=keys[0], hint="a whole number")
    return value


def _first_count(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    return next((count for key in keys if (count := _count(config, key)) > 0), 0)


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40 else 0
