"""Samples of evaluation harnesses, one file per model and task, as a table with a row per request.

Sources: ``lm_eval --log_samples`` of EleutherAI's lm-evaluation-harness; ``helm-run`` of Stanford's HELM.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unfoldkit.api import decode_text, user_error
from unfoldkit.safe_io.files import decoding, parse_json, parse_object, read_bytes

HARNESS_FILES = "samples_*.jsonl"
HELM_FILE = "per_instance_stats.json"
HELM_PROMPTS = "scenario_state.json"
MAX_DEPTH = 2
"""Levels of folders in which samples are searched."""
LAYOUT = (
    "data.path: a folder in which lm-evaluation-harness has left MODEL/samples_TASK_DATE.jsonl of every model "
    f"(--log_samples), or HELM TASK:model=MODEL/{HELM_FILE}"
)
SAME_REQUESTS = "evaluate every model on the same tasks, with the same --limit and seed"
_DATE = re.compile(r"_\d{4}-\d{2}-\d{2}T[\d.:+-]+$")
_HELM_RUN = re.compile(r"(?:^|[,:])model=([^,]+)")


@dataclass(frozen=True, slots=True)
class Sample:
    """What one model did with one request.

    Attributes:
        request: its identity among those of a task.
        shared: values that are the same for all models; ``content`` identifies what was asked.
        results: metrics, confidence and answer of this model.
    """

    request: str
    shared: Mapping[str, Any]
    results: Mapping[str, Any]


@dataclass(slots=True)
class _Table:
    """Rows by task and request, and the columns that each model has filled."""

    rows: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    models: dict[str, set[tuple[str, str]]] = field(default_factory=dict)

    def add(self, model: str, task: str, sample: Sample, file: Path) -> None:
        """Add a sample.

        Raises:
            UnfoldError: the model has one of this request already, or another model was asked something else.
        """
        key = task, sample.request
        row = self.rows.setdefault(key, {"task": task, **sample.shared})
        content = sample.shared.get("content")
        if content is not None and row.get("content", content) != content:
            message = f"request {sample.request} of {task} is not that of the other models"
            raise user_error(message, file=str(file), hint=SAME_REQUESTS)
        if key in self.models.setdefault(model, set()):
            message = f"a second sample of {model} for request {sample.request} of {task}"
            raise user_error(message, file=str(file), hint="keep one evaluation of each model in the folder")
        self.models[model].add(key)
        row.update({f"{model}|{name}": value for name, value in sample.results.items()})

    def columns(self, folder: Path) -> dict[str, np.ndarray]:
        """Return the columns of the requests, ``None`` where a value is missing.

        Raises:
            UnfoldError: a model has no sample of a request.
        """
        for model, keys in self.models.items():
            missing = next((key for key in self.rows if key not in keys), None)
            if missing is not None:
                message = f"{model} has no sample of request {missing[1]} of {missing[0]}, unlike other models"
                raise user_error(message, file=str(folder), hint=SAME_REQUESTS)
        names = dict.fromkeys(name for row in self.rows.values() for name in row if name != "content")
        return {name: _fill([row.get(name) for row in self.rows.values()]) for name in names}


def read_evaluations(folder: Path) -> tuple[dict[str, np.ndarray], str]:
    """Read the samples below a folder: columns ``task`` and ``prompt``, and ``MODEL|METRIC`` of each model.

    Returns:
        Columns of (n,) values, and a hash of all files.

    Raises:
        UnfoldError: there are no samples, one is damaged, or the models did not answer the same requests.
    """
    table, digest = _Table(), hashlib.sha256()
    patterns = ("*/" * depth + name for depth in range(MAX_DEPTH + 1) for name in (HARNESS_FILES, HELM_FILE))
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    if not files:
        raise user_error("a folder without samples of an evaluation, not a table", file=str(folder), hint=LAYOUT)
    for file in files:
        data = read_bytes(file)
        digest.update(hashlib.sha256(data).digest())
        with decoding(str(file), "a file of samples"):
            model, task, samples = _read_helm(file, data) if file.name == HELM_FILE else _read_harness(file, data)
            for sample in samples:
                table.add(model, task, sample, file)
    return table.columns(folder), digest.hexdigest()


def _read_harness(file: Path, data: bytes) -> tuple[str, str, Iterator[Sample]]:
    """Read a file of lm-evaluation-harness, which holds each document once for each filter of its answers."""
    lines = decode_text(data, file).splitlines()
    items = [parse_object(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    filters = {str(item.get("filter", "none")) for item in items}
    documents: dict[str, Sample] = {}
    for item in items:
        request, suffix = str(item["doc_id"]), f"|{item['filter']}" if len(filters) > 1 else ""
        results = {name + suffix: value for name, value in _list_results(item)}
        earlier = documents.get(request)
        if earlier is not None and not results.keys().isdisjoint(earlier.results):
            raise user_error(f"document {request} occurs twice", file=str(file))
        shared = {"prompt": _first_text(item.get("arguments")), "content": item.get("doc_hash")}
        documents[request] = Sample(request, shared, {**(earlier.results if earlier else {}), **results})
    task = _DATE.sub("", file.stem.removeprefix("samples_"))
    return file.parent.name, task, iter(documents.values())


def _list_results(item: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    metrics = item.get("metrics") or [name for name in item if name != "doc_id"]
    yield from ((name, float(item[name])) for name in metrics if isinstance(item[name], (bool, int, float)))
    answers: Sequence[Any] = item["filtered_resps"]
    if len(answers) > 1 and all(isinstance(answer, list) and len(answer) == 2 for answer in answers):
        likelihood = np.array([float(answer[0]) for answer in answers])
        yield "answer", str(int(likelihood.argmax()))
        yield "confidence", float(1.0 / np.exp(likelihood - likelihood.max()).sum())
    elif answers:
        yield "answer", answers[0] if isinstance(answers[0], str) else json.dumps(answers[0])


def _first_text(value: Any) -> str:
    """Return the first text in nested lists and objects: the prompt, in the arguments of a request."""
    while isinstance(value, (list, dict)) and value:
        value = value[0] if isinstance(value, list) else next(iter(value.values()))
    return value if isinstance(value, str) else ""


def _read_helm(file: Path, data: bytes) -> tuple[str, str, Iterator[Sample]]:
    """Read a run of HELM: its folder names task and model; perturbed instances are left out."""
    match = _HELM_RUN.search(file.parent.name)
    if match is None:
        raise user_error("the name of the folder does not say which model was run", file=str(file), hint=LAYOUT)
    task = (file.parent.name[: match.start()] + file.parent.name[match.end() :]).strip(",:")
    prompts = _read_helm_prompts(file.with_name(HELM_PROMPTS))
    return match[1], task, _list_instances(parse_json(data), task, prompts)


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


def _fill(values: list[Any]) -> np.ndarray:
    if all(value is None or isinstance(value, float) for value in values):
        return np.array([math.nan if value is None else value for value in values])
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
