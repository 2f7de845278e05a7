"""A plan of LLM engines as arguments of vLLM, Kubernetes Deployments, KServe's LLMInferenceService, Ray Serve LLM."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from unfold_pipeline.problem.exported_plan import assign_labels, to_label
from unfoldkit.api import Report, user_error
from unfoldkit.io.yaml12 import to_yaml

MODEL = "MODEL"
"""Stands for the name of a model if the spec gives its sizes only."""
IMAGE = "vllm/vllm-openai:latest"
PORT = 8000
KV_TRANSFER = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
"""vLLM's connector for separate pools: the decode engine reads, whatever the role."""
LINK_NOTE = """\
# VLLM_NIXL_SIDE_CHANNEL_HOST states the address at which the other pool reaches an engine; several engines of a machine
# need a VLLM_NIXL_SIDE_CHANNEL_PORT each
"""
ROLE_LABEL = "llm-d.ai/role"
MODEL_NOTE = "# MODEL stands for the name of the model, which engine.model.name would state\n"
CLAIM_NOTE = "# CLAIM stands for the PersistentVolumeClaim that holds the model, at this path within it\n"
CONTEXT_NOTE = (
    "# the maximum model length is for the longest request of the trace, and longer ones are refused; "
    "engine.model.config would state the model's context\n"
)
POOL_NOTE = (
    "# two pools need a router that sends a request to a prefill engine first, such as unfold serve or that of llm-d\n"
)
RAY_ACCELERATORS = {
    "a100_40gb": "A100", "a100_80gb": "A100", "a100_pcie": "A100", "a100_sxm": "A100", "a10g": "A10G",
    "b200_sxm": "B200", "h100_nvl": "H100", "h100_pcie": "H100", "h100_sxm": "H100", "h20": "H20", "h200_sxm": "H200",
    "l4": "L4", "l40s": "L40S", "mi300x": "AMD-Instinct-MI300X-OAM", "rtxpro6000": "RTX-PRO-6000",
}  # fmt: skip
"""Names of GPUs in Ray; nodes with others have no such label, and a requirement for one would never be met."""
SHARED_MEMORY = {"name": "shm", "emptyDir": {"medium": "Memory"}}
"""The GPUs of an engine exchange data over shared memory; a container has only 64 MiB of it by default."""
DATA_TYPE = "bfloat16"
"""Of activations, whatever the precision of the weights."""
OTHER_FORMATS = "stages without an engine: --format kserve, ray-serve or triton"


def has_engines(report: Report) -> bool:
    """Return whether a report holds a plan of engines."""
    return bool((report.decision or {}).get("engines"))


def export_vllm(report: Report) -> str:
    """Return the command that starts each engine.

    Raises:
        UnfoldError: The report holds no plan of engines.
    """
    lines = [*_build_notes(report).splitlines(), *(LINK_NOTE.splitlines() if _has_pools(report) else ())]
    for stage, engine in _list_engines(report).items():
        gpus = f"{engine['tensor_parallel']} {engine['hardware']} GPUs"
        # a name with a line break would begin a command
        comment = f"# {stage}: {engine['replicas']} × on {gpus}, {engine['routing']}"
        lines.append(" ".join(comment.split()))
        lines.append(shlex.join(["vllm", "serve", *list_arguments(engine)]))
    return "\n".join(lines) + "\n"


def export_kubernetes(report: Report) -> str:
    """Return a Deployment and a Service for each stage.

    Raises:
        UnfoldError: The report holds no plan of engines.
    """
    documents: list[dict[str, Any]] = []
    engines = _list_engines(report)
    names = assign_labels(engines)
    for stage, engine in engines.items():
        labels = {"app": names[stage], **({ROLE_LABEL: engine["role"]} if "role" in engine else {})}
        container: dict[str, Any] = {
            "name": "vllm",
            "image": IMAGE,
            "args": list_arguments(engine),
            **_list_variables(engine),
            "ports": [{"containerPort": PORT}],
            "resources": {"limits": {"nvidia.com/gpu": str(engine["tensor_parallel"])}},
            "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}},
        }
        pod: dict[str, Any] = {"containers": [container]}
        if engine["tensor_parallel"] > 1:
            container["volumeMounts"] = [{"name": SHARED_MEMORY["name"], "mountPath": "/dev/shm"}]  # noqa: S108 - a mount
            pod["volumes"] = [SHARED_MEMORY]
        template = {"metadata": {"labels": labels}, "spec": pod}
        documents += [
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": labels["app"], "labels": labels},
                "spec": {"replicas": engine["replicas"], "selector": {"matchLabels": labels}, "template": template},
            },
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": labels["app"], "labels": labels},
                "spec": {"selector": labels, "ports": [{"port": PORT, "targetPort": PORT}]},
            },
        ]
    return _build_notes(report) + "---\n".join(str(to_yaml(document)) for document in documents)


def export_llm_services(report: Report) -> str:
    """Return an LLMInferenceService of KServe, which llm-d routes to, for each stage; two pools are one service."""
    documents = []
    engines, stage_of_pools = _list_engines(report), _name_pool_stage(report)
    prefill = engines.get(f"{stage_of_pools}-prefill")
    for name, engine in engines.items():
        if engine is prefill:
            continue
        model = _name_model(engine)
        pool = {} if prefill is None else {"prefill": _build_workload(prefill)}
        documents.append(
            {
                "apiVersion": "serving.kserve.io/v1alpha1",
                "kind": "LLMInferenceService",
                "metadata": {"name": to_label(stage_of_pools or name)},
                "spec": {
                    "model": {"uri": _build_uri(model), "name": model},
                    **_build_workload(engine),
                    **pool,
                    "router": {"route": {}, "gateway": {}, "scheduler": {}},
                },
            }
        )
    claim = CLAIM_NOTE if any(map(_is_path, map(_name_model, engines.values()))) else ""
    notes = _build_notes(report, has_router=True) + claim
    return notes + "---\n".join(str(to_yaml(document)) for document in documents)


def _is_path(model: str) -> bool:
    """Return whether the name of a model is a folder, which no machine but this one need have."""
    return model.startswith(("/", "./", "../", "~"))


def _build_uri(model: str) -> str:
    """Return where KServe finds a model: by its own URI, on a claim, or at Hugging Face."""
    if "://" in model:
        return model
    return f"pvc://CLAIM/{model.lstrip('~./')}" if _is_path(model) else f"hf://{model}"


def _build_workload(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return replicas, parallelism and template of an LLMInferenceService, or of its prefill pool."""
    _, *arguments = list_arguments(engine)
    parallel = engine["tensor_parallel"]
    container = {
        "name": "main",
        "args": arguments,
        **_list_variables(engine),
        "resources": {"limits": {"nvidia.com/gpu": str(parallel)}},
    }
    return {
        "replicas": engine["replicas"],
        "parallelism": {"tensor": parallel},
        "template": {"containers": [container]},
    }


def export_ray_llm(report: Report) -> str:
    """Return the config of an application of Ray Serve LLM."""
    configs = []
    for engine in _list_engines(report).values():
        name, accelerator = _name_model(engine), RAY_ACCELERATORS.get(str(engine["gpu"]))
        configs.append(
            {
                "model_loading_config": {"model_id": name, "model_source": name},
                **({"accelerator_type": accelerator} if accelerator else {}),
                "deployment_config": {
                    "autoscaling_config": {"min_replicas": engine["replicas"], "max_replicas": engine["replicas"]}
                },
                "engine_kwargs": _build_arguments(engine),
            }
        )
    application: dict[str, Any] = {
        "name": to_label(report.name),
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": configs},
    }
    if _has_pools(report):
        application["import_path"] = "ray.serve.llm:build_pd_openai_app"
        application["args"] = dict(zip(("prefill_config", "decode_config"), configs, strict=True))
    return _build_notes(report, has_router=True) + str(to_yaml({"applications": [application]}))


def list_arguments(engine: Mapping[str, Any]) -> list[str]:
    """Return the arguments of ``vllm serve`` for an engine, the model first."""
    arguments = [_name_model(engine)]
    for key, value in _build_arguments(engine).items():
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            arguments.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, dict):
            arguments += [flag, json.dumps(value, separators=(",", ":"))]
        else:
            arguments += [flag, str(value)]
    return arguments


def _build_arguments(engine: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "tensor_parallel_size": engine["tensor_parallel"],
        "max_num_batched_tokens": engine["max_num_batched_tokens"],
        "max_num_seqs": engine["max_num_seqs"],
        "gpu_memory_utilization": engine["gpu_memory_utilization"],
        "max_model_len": engine["max_model_len"],
        "enable_prefix_caching": engine["prefix_cache"],
        "async_scheduling": engine["async_scheduling"],
        "dtype": DATA_TYPE,
    }
    # a quantized checkpoint states its own method, and vLLM refuses another one
    if engine["precision"] == "fp8" and not engine.get("is_quantized"):
        arguments["quantization"] = "fp8"
    if engine["kv_precision"] == "fp8":
        arguments["kv_cache_dtype"] = "fp8"
    if "role" in engine:
        arguments["kv_transfer_config"] = KV_TRANSFER
    return arguments


def _list_variables(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the environment of an engine of a pool: the address at which the other pool reaches it."""
    if "role" not in engine:
        return {}
    address = {"fieldRef": {"fieldPath": "status.podIP"}}
    return {"env": [{"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", "valueFrom": address}]}


def _build_notes(report: Report, *, has_router: bool = False) -> str:
    """Return the comments above an export: what it leaves to its reader."""
    engines = _list_engines(report).values()
    lacks_name = any(not engine.get("model_name") for engine in engines)
    context = "" if all(engine.get("max_context") for engine in engines) else CONTEXT_NOTE
    pools = POOL_NOTE if _has_pools(report) and not has_router else ""
    return pools + (MODEL_NOTE if lacks_name else "") + context


def _has_pools(report: Report) -> bool:
    return bool((report.decision or {}).get("disaggregated"))


def _name_pool_stage(report: Report) -> str:
    return str(((report.decision or {}).get("disaggregated") or {}).get("stage", ""))


def _list_engines(report: Report) -> Mapping[str, Mapping[str, Any]]:
    decision = report.decision or {}
    engines = decision.get("engines")
    if not engines:
        hint = OTHER_FORMATS if decision.get("stages") else "unfold plan, for a spec with stages.NAME.engine"
        raise user_error("the report holds no plan of LLM engines", hint=hint)
    if others := (report.decision or {}).get("stages_around"):
        message = f"exports take an engine without other stages; the plan has {', '.join(others)}"
        raise user_error(message, hint="a spec with the engine alone, and less time in its targets")
    return dict(engines)


def _name_model(engine: Mapping[str, Any]) -> str:
    return str(engine.get("model_name") or MODEL)
