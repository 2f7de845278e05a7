"""Runs of Stanford's HELM (``helm-run``): one folder per model and task."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unfold_cascade.data.evaluations.sample import Sample
from unfoldkit.api import user_error
from unfoldkit.safe_io.files import parse_json, parse_object, read_bytes

HELM_FILE = "per_instance_stats.json"
HELM_PROMPTS = "scenario_state.json"
_HELM_RUN = re.compile(r"(?:^|[,:])model=([^,]+)")


def read_helm(file: Path, data: bytes) -> Iterator[tuple[str, str, Sample]]:
    """Yield model, task and sample of a run; its folder names task and model, and perturbed samples are left out.

    Args:
        file: The run's ``per_instance_stats.json``; prompts come from the ``scenario_state.json`` beside it, if any.
        data: Its content: a JSON list with the statistics of each instance.

    Raises:
        UnfoldError: The folder names no model, or a file is not JSON.
    """
    match = _HELM_RUN.search(file.parent.name)
    if match is None:
        hint = f"HELM writes TASK:model=MODEL/{HELM_FILE}"
        raise user_error("the name of the folder does not say which model was run", file=str(file), hint=hint)
    task = (file.parent.name[: match.start()] + file.parent.name[match.end() :]).strip(",:")
    prompts = _read_helm_prompts(file.with_name(HELM_PROMPTS))
    return ((match[1], task, sample) for sample in _list_instances(parse_json(data), task, prompts))


def _list_instances(items: Sequence[Mapping[str, Any]], task: str, prompts: Mapping[str, str]) -> Iterator[Sample]:
    for item in items:
        if item.get("perturbation") is None:
            instance = str(item["instance_id"])
            prompt = prompts.get(instance)
            stats = (stat for stat in item["stats"] if "perturbation" not in stat["name"] and stat["count"])
            results = {_name_helm_metric(stat["name"]["name"]): stat["sum"] / stat["count"] for stat in stats}
            request = f"{instance} (trial {item.get('train_trial_index', 0)})"
            yield Sample(request, {"prompt": prompt or f"{task} {instance}", "content": prompt}, results)


def _name_helm_metric(name: str) -> str:
    # the reader of logs takes a latency for ms unless its column ends in _s
    return f"{name}_s" if name == "inference_runtime" else name


def _read_helm_prompts(file: Path) -> dict[str, str]:
    if not file.exists():
        return {}
    states = parse_object(read_bytes(file), str(file))["request_states"]
    return {str(state["instance"]["id"]): str(state["instance"]["input"]["text"]) for state in states}
