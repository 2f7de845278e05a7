"""Configs of published models: sizes, KV heads, what makes them no dense decoder, precision of the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unfold_pipeline.engine.hardware.gpu import estimate_kv_cache, find_gpu
from unfold_pipeline.engine.hardware.model_config import read_model_config
from unfold_pipeline.engine.hardware.model_shape import ModelShape
from unfoldkit.api import UnfoldError

LLAMA: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "model_type": "llama",
}  # fmt: skip
GPT2 = {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_inner": None, "vocab_size": 50257, "model_type": "gpt2"}
FALCON = {
    "hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32, "multi_query": True, "num_kv_heads": 71,
    "vocab_size": 65024, "model_type": "falcon",
}  # fmt: skip
FALCON_40B = {
    "hidden_size": 8192, "num_attention_heads": 128, "num_hidden_layers": 60, "num_kv_heads": 8, "multi_query": True,
    "new_decoder_architecture": True, "vocab_size": 65024, "model_type": "falcon",
}  # fmt: skip
STARCODER = {
    "n_embd": 6144, "n_head": 48, "n_layer": 40, "n_inner": 24576, "multi_query": True, "vocab_size": 49152,
    "model_type": "gpt_bigcode",
}  # fmt: skip
PYTHIA = {**LLAMA, "intermediate_size": 16384, "num_key_value_heads": None, "vocab_size": 50432} | {
    "model_type": "gpt_neox"
}
CHATGLM = {
    "hidden_size": 4096, "ffn_hidden_size": 13696, "num_attention_heads": 32, "num_layers": 28,
    "multi_query_attention": True, "multi_query_group_num": 2, "padded_vocab_size": 65024, "kv_channels": 128,
    "model_type": "chatglm",
}  # fmt: skip
GEMMA = {
    "hidden_size": 3584, "intermediate_size": 14336, "num_attention_heads": 16, "num_hidden_layers": 42,
    "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000, "sliding_window": 4096, "model_type": "gemma2",
}  # fmt: skip
GEMMA_3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "vision_config": {"hidden_size": 1152},
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
}  # fmt: skip
GEMMA_3_12B = {
    **GEMMA_3_4B,
    "text_config": {
        "hidden_size": 3840, "intermediate_size": 15360, "model_type": "gemma3_text", "num_attention_heads": 16,
        "num_hidden_layers": 48, "num_key_value_heads": 8, "sliding_window": 1024,
    },
}  # fmt: skip
QWEN = {
    "architectures": ["QWenLMHeadModel"], "hidden_size": 4096, "intermediate_size": 22016, "num_attention_heads": 32,
    "num_hidden_layers": 32, "kv_channels": 128, "vocab_size": 151936, "model_type": "qwen",
    "tie_word_embeddings": False,
}  # fmt: skip
PERSIMMON = {
    "hidden_size": 4096, "intermediate_size": 16384, "num_attention_heads": 64, "num_hidden_layers": 36,
    "vocab_size": 262144, "model_type": "persimmon", "tie_word_embeddings": False,
}  # fmt: skip
APERTUS = {
    **LLAMA, "intermediate_size": 21504, "vocab_size": 131072, "model_type": "apertus",
}  # fmt: skip


def read(folder: Path, config: Mapping[str, Any], *, is_profiled: bool = False) -> ModelShape:
    path = folder / "config.json"
    path.write_text(json.dumps(config), "utf-8")
    return read_model_config(path, is_profiled=is_profiled)


@pytest.mark.parametrize(
    ("config", "billions", "kv_heads"),
    [
        (LLAMA, 8.03, 8),
        (GPT2, 0.124, 12),
        (FALCON, 6.9, 1),
        (FALCON_40B, 41.3, 8),
        (STARCODER, 15.5, 1),
        (PYTHIA, 6.86, 32),
        (CHATGLM, 6.2, 2),
        (GEMMA, 9.24, 8),
        (GEMMA_3_4B, 3.88, 4),
        (GEMMA_3_12B, 11.77, 8),
        (QWEN, 7.72, 32),
        (PERSIMMON, 9.4, 64),
        (APERTUS, 8.05, 8),
    ],
)
def test_sizes_give_the_published_parameters(
    tmp_path: Path, config: Mapping[str, Any], billions: float, kv_heads: int
) -> None:
    """The parameters of a model are those on its card, within 2 %, and its KV heads those that vLLM counts."""
    shape = read(tmp_path, config)
    total = shape.linear_parameters + shape.embedding_parameters
    assert total / 1e9 == pytest.approx(billions, rel=0.02)
    assert shape.kv_heads == kv_heads


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["InternVLChatModel"], "llm_config": {**LLAMA, "architectures": ["LlamaForCausalLM"]}},
        {"architectures": ["Qwen2_5OmniModel"], "thinker_config": {"text_config": LLAMA, "audio_config": {}}},
        {"architectures": ["SomeVLModel"], "language_config": LLAMA, "vision_config": {"hidden_size": 1152}},
    ],
)
def test_the_language_model_of_a_model_with_images_or_speech_is_read(tmp_path: Path, config: Mapping[str, Any]) -> None:
    """Its section has the sizes, and the architecture of the whole ends as that of an encoder."""
    assert read(tmp_path, config) == read(tmp_path, LLAMA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe_num_experts": 64}, r"mixture of experts \(moe_num_experts\)"),
        ({"moe_num_experts": [64, 64]}, r"mixture of experts"),
        ({"ffn_config": {"moe_num_experts": 16}}, r"mixture of experts"),
        ({"hybrid_override_pattern": "M-M*-"}, r"not grouped-query attention \(hybrid_override_pattern\)"),
        ({"layer_types": ["mamba", "attention"]}, r"not grouped-query attention \(layer_types\)"),
        ({"layer_types": ["conv", "full_attention"]}, r"not grouped-query attention \(layer_types\)"),
        ({"architectures": ["BertForMaskedLM"]}, r"generates no text \(BertForMaskedLM\)"),
        ({"architectures": ["XLMRobertaModel"]}, r"generates no text \(XLMRobertaModel\)"),
        ({"architectures": ["MistralModel"]}, r"generates no text \(MistralModel\)"),
        ({"architectures": ["Qwen2ForRewardModel"]}, r"generates no text \(Qwen2ForRewardModel\)"),
        ({"is_encoder_decoder": True}, r"has an encoder and a decoder"),
        ({"cross_attention_layers": [3, 8]}, r"not grouped-query attention \(cross_attention_layers\)"),
        ({"num_key_value_heads_per_layer": [4, 1]}, r"not grouped-query attention \(num_key_value_heads_per_layer\)"),
        ({"language_config": {"n_routed_experts": 64}}, r"mixture of experts \(n_routed_experts\)"),
        ({"num_kv_shared_layers": 15}, r"not grouped-query attention \(num_kv_shared_layers\)"),
    ],
)
def test_models_that_are_no_dense_decoder_are_named(tmp_path: Path, changes: Mapping[str, Any], message: str) -> None:
    """Experts, layers without a KV cache and encoders are refused, unless the engine was measured."""
    with pytest.raises(UnfoldError, match=message):
        read(tmp_path, {**LLAMA, **changes})
    assert read(tmp_path, {**LLAMA, **changes}, is_profiled=True).layers == 32


def test_attention_layers_of_a_hybrid_family_are_dense(tmp_path: Path) -> None:
    """Keys of a family's recurrent layers do not matter where all layers are attention."""
    config = {**LLAMA, "layer_types": ["attention"] * 32, "mamba_d_state": 128}
    assert not read(tmp_path, config).is_unusual


@pytest.mark.parametrize(
    ("config", "window", "groups"),
    [
        (LLAMA, (0, 0), (32, 1, 0)),
        (GEMMA, (4096, 21), (21, 1, 1)),
        (GEMMA_3_4B, (1024, 29), (5, 1, 6)),
        (GEMMA_3_12B, (1024, 40), (8, 1, 5)),
        ({**LLAMA, "sliding_window": 4096, "model_type": "mistral"}, (4096, 32), (32, 0, 1)),
        ({**LLAMA, "sliding_window": None, "model_type": "mistral"}, (0, 0), (32, 1, 0)),
        ({**LLAMA, "sliding_window": 4096, "model_type": "qwen2"}, (0, 0), (32, 1, 0)),
        ({**LLAMA, "sliding_window": 4096, "use_sliding_window": False}, (0, 0), (32, 1, 0)),
        (
            {
                **LLAMA,
                "sliding_window": 4096,
                "use_sliding_window": True,
                "max_window_layers": 28,
                "model_type": "qwen2",
            },
            (4096, 4),
            (4, 7, 1),
        ),
        ({**LLAMA, "sliding_window": 4096, "model_type": "cohere2"}, (4096, 24), (8, 1, 3)),
        ({**LLAMA, "sliding_window": 512, "sliding_window_pattern": "LLLG"}, (512, 24), (8, 1, 3)),
        (
            {**LLAMA, "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 16},
            (128, 16),
            (16, 1, 1),
        ),
        ({**LLAMA, "attention_chunk_size": 8192, "layer_types": ["chunked_attention"] * 32}, (0, 0), (32, 1, 0)),
    ],
)
def test_layers_with_a_window_are_counted(
    tmp_path: Path, config: Mapping[str, Any], window: tuple[int, int], groups: tuple[int, int, int]
) -> None:
    """The window, its layers, and the groups of layers in the KV cache are those that vLLM forms."""
    shape = read(tmp_path, config)
    layout = shape.kv_layout
    assert (shape.window, shape.window_layers) == window
    assert (layout.group_layers, layout.full_groups, layout.window_groups) == groups


def test_a_window_leaves_room_for_longer_requests(tmp_path: Path) -> None:
    """Layers with a window take a window of each request, so that a cache of the same memory holds longer ones."""
    shape, gpu = read(tmp_path, GEMMA_3_12B), find_gpu("h100_sxm")
    assert gpu is not None
    kinds = {"tensor_parallel": 1, "precision": "bf16", "kv_precision": "bf16", "utilization": 0.9}
    windowed = estimate_kv_cache(shape, gpu, **kinds)
    whole = estimate_kv_cache(replace(shape, window=0, window_layers=0), gpu, **kinds)
    assert windowed.num_blocks == pytest.approx(6 * whole.num_blocks, abs=6)
    assert windowed.tokens == pytest.approx(whole.tokens, abs=32)
    assert windowed.keep_whole_context().num_blocks == pytest.approx(whole.num_blocks, abs=1)
    longest = windowed.find_longest_request(2048)
    held = -(-(1023 + 2048) // 16) + 1
    assert longest // 16 + 5 * held <= windowed.num_blocks < longest // 16 + 1 + 5 * held
    assert longest > 5 * whole.find_longest_request(2048)


def compressed(bits: int, kind: str, form: str) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize(
    ("quantization", "precision"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "gptq", "bits": 4}, "int4"),
        (compressed(4, "int", "pack-quantized"), "int4"),
        (compressed(4, "float", "nvfp4-pack-quantized"), "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
        (compressed(8, "float", "float-quantized"), "fp8"),
        (None, ""),
    ],
)
def test_the_precision_of_a_checkpoint_is_found(tmp_path: Path, quantization: Any, precision: str) -> None:
    """The usual methods of quantization are one of the precisions."""
    assert read(tmp_path, {**LLAMA, "quantization_config": quantization}).stored_precision == precision


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 3},
        compressed(8, "int", "int-quantized"),
        {},
    ],
)
def test_other_quantizations_are_refused(tmp_path: Path, quantization: Any) -> None:
    """Weights with kernels that are not simulated are an error, unless the engine was measured."""
    config = {**LLAMA, "quantization_config": {"x": 1, **quantization}}
    with pytest.raises(UnfoldError, match="are not simulated"):
        read(tmp_path, config)
    assert read(tmp_path, config, is_profiled=True).stored_precision == ""


def test_weights_in_several_precisions_are_refused(tmp_path: Path) -> None:
    """The first group of a checkpoint does not represent the others, and a quantization must be an object."""
    groups = {f"g{bits}": {"weights": {"num_bits": bits, "type": "float"}} for bits in (8, 4)}
    mixed = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    with pytest.raises(UnfoldError, match="several precisions"):
        read(tmp_path, {**LLAMA, "quantization_config": mixed})
    with pytest.raises(UnfoldError, match="quantization_config: the quantization of the weights is not an object"):
        read(tmp_path, {**LLAMA, "quantization_config": "fp8"})


@pytest.mark.parametrize(
    ("quantization", "bytes_per_weight"),
    [
        ({"quant_method": "awq", "bits": 4}, 0.5 + 2.5 / 128),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, 0.5 + 2.5 / 64),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, 0.5 + 2.5 / 32),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, 0.5),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}}
                },
            },
            0.5 + 2.5 / 32,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 4, "type": "int", "strategy": "channel", "group_size": None}}
                },
            },
            0.5,
        ),
    ],
)
def test_small_groups_take_more_memory(
    tmp_path: Path, quantization: Mapping[str, Any], bytes_per_weight: float
) -> None:
    """4-bit weights have a scale and a zero for each group, of the size that the checkpoint states."""
    shape = read(tmp_path, {**LLAMA, "quantization_config": quantization})
    assert shape.stored_precision == "int4"
    assert shape.bytes_per_weight("int4") == pytest.approx(bytes_per_weight)
    assert shape.bytes_per_weight("bf16") == 2.0


def test_four_bits_take_a_quarter_of_the_memory(tmp_path: Path) -> None:
    """Llama-3.1-8B in int4 is 5.7 GB as published, with its embeddings in 16 bits; only some GPUs compute in 4 bits."""
    shape = read(tmp_path, LLAMA)
    assert shape.weight_bytes("int4") / 1e9 == pytest.approx(5.73, rel=0.02)
    assert shape.weight_bytes("nvfp4") / shape.weight_bytes("bf16") == pytest.approx(0.375, rel=0.02)
    h100, b200 = find_gpu("h100"), find_gpu("b200")
    assert h100 is not None
    assert b200 is not None
    assert h100.flops("nvfp4") == h100.flops("int4") == h100.bf16_flops
    assert b200.flops("nvfp4") == 2 * b200.fp8_flops


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "h100_sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100_sxm"),
        ("NVIDIA A100-PCIE-40GB", "a100_40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX A6000", "a6000"),
        ("nvidia-l4", "l4"),
        ("H200", "h200_sxm"),
    ],
)
def test_gpus_have_the_names_of_their_driver(name: str, known: str) -> None:
    """What nvidia-smi prints is a known name."""
    gpu = find_gpu(name)
    assert gpu is not None
    assert gpu.name == known


def test_an_unknown_gpu_is_not_guessed() -> None:
    """A name that is only part of a known one stays unknown."""
    assert find_gpu("RTX") is None
    assert find_gpu("H100X") is None
