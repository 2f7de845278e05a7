"""Samples of EleutherAI's lm-evaluation-harness (``lm_eval --log_samples``): one file per model and task."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unfold_cascade.data.evaluations.sample import Sample
from unfoldkit.api import decode_text, user_error
from unfoldkit.safe_io.files import parse_object

_DATE = re.compile(r"_\d{4}-\d{2}-\d{2}T[\d.:+-]+$")


def read_harness(file: Path, data: bytes) -> Iterator[tuple[str, str, Sample]]:
    """Yield model, task and sample of a file, which holds each document once for each filter of its answers.

    Args:
        file: A file ``samples_TASK_DATE.jsonl`` in a folder which is named after the model.
        data: Its content: one JSON object per line, as UTF-8.

    Raises:
        UnfoldError: A line is not a JSON object, or a document occurs twice.
    """
    # other ends of lines, such as U+2028, occur within texts
    lines = decode_text(data, file).split("\n")
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
    return ((file.parent.name, task, sample) for sample in documents.values())


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
