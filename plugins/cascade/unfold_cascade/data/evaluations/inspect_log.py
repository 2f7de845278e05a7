"""Logs of Inspect (UK AI Security Institute): one ``.eval`` archive or JSON file per model and task."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unfold_cascade.data.evaluations.sample import Sample
from unfoldkit.api import decode_text, user_error
from unfoldkit.safe_io.archives import read_archive, read_member
from unfoldkit.safe_io.files import parse_object

ARCHIVE_SUFFIX = ".eval"
GRADES: Mapping[str, float] = {"C": 1.0, "P": 0.0, "I": 0.0, "N": 0.0}
"""Letters of Inspect: correct, partly correct, incorrect, no answer. Only an answer that is correct counts as right."""
USAGE: Mapping[str, tuple[str, ...]] = {
    "input_tokens": ("input_tokens", "input_tokens_cache_read", "input_tokens_cache_write"),
    "cached_tokens": ("input_tokens_cache_read",),
    "written_tokens": ("input_tokens_cache_write",),
    "output_tokens": ("output_tokens",),
}
"""Counts that Inspect keeps apart: tokens read from or written to a cache are no part of its ``input_tokens``."""
_HEAD = re.compile(rb'\{\s*"version"\s*:\s*\d+\s*,\s*"status"\s*:\s*"\w+"\s*,\s*"eval"\s*:')


def is_inspect_log(data: bytes) -> bool:
    """Whether a file is a log in JSON."""
    return _HEAD.match(data.removeprefix(b"\xef\xbb\xbf")) is not None


def read_inspect_log(file: Path, data: bytes) -> Iterator[tuple[str, str, Sample]]:
    """Yield model, task and sample of a log; each epoch of a sample is a request of its own.

    Raises:
        UnfoldError: The log is damaged, or the evaluation did not finish.
    """
    is_archive = file.suffix == ARCHIVE_SUFFIX and data[:1] != b"{"
    header, samples = _read_archive(file, data) if is_archive else _read_json(file, data)
    if header["status"] != "success":
        hint = "delete its log, or resume it: inspect eval-retry"
        raise user_error(f"the evaluation ended with status {header['status']!r}", file=str(file), hint=hint)
    model, task = header["eval"]["model"], header["eval"]["task"]
    for item in samples:
        yield model, task, _read_sample(item, model)


def _read_json(file: Path, data: bytes) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    log = parse_object(decode_text(data, file), str(file))
    return log, iter(log["samples"])


def _read_archive(file: Path, data: bytes) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    archive = read_archive(data, str(file))
    names = archive.namelist()
    if "header.json" not in names:
        raise user_error("the evaluation has not ended: its log has no header", file=str(file))
    header = parse_object(read_member(archive, "header.json", str(file)), str(file))
    samples = (name for name in names if name.startswith("samples/") and name.endswith(".json"))
    return header, (parse_object(read_member(archive, name, str(file)), f"{file}/{name}") for name in samples)


def _read_sample(item: Mapping[str, Any], model: str) -> Sample:
    request = str(item["id"]) if item.get("epoch", 1) == 1 else f"{item['id']} (epoch {item['epoch']})"
    prompt = "\n".join([_read_text(item["input"], item.get("attachments") or {}), *(item.get("choices") or ())])
    shared = {"prompt": prompt, "content": (prompt, json.dumps(item.get("target")))}
    has_failed = item.get("error") is not None or item.get("invalidation") is not None
    return Sample(request, shared, {} if has_failed else dict(_list_results(item, model)))


def _read_text(value: Any, attachments: Mapping[str, str]) -> str:
    """Return the text of an input: of all its messages, with texts that are stored as attachments."""
    if isinstance(value, str):
        return attachments.get(value.removeprefix("attachment://"), value)
    parts = (part.get("content", part.get("text", "")) if isinstance(part, dict) else part for part in value)
    return "\n".join(_read_text(part, attachments) for part in parts)


def _list_results(item: Mapping[str, Any], model: str) -> Iterator[tuple[str, Any]]:
    """Yield scores, answer, log-probability, tokens, cost and duration of a sample without an error."""
    for scorer, score in (item.get("scores") or {}).items():
        values = score["value"] if isinstance(score["value"], dict) else {"": score["value"]}
        for name, value in values.items():
            number = _grade(value)
            if number is not None:
                yield f"{scorer}.{name}" if name else scorer, number
    output = item.get("output") or {}
    if output.get("choices"):
        yield "answer", str(output.get("completion") or _read_completion(output["choices"][0]))
        tokens = (output["choices"][0].get("logprobs") or {}).get("content") or ()
        if tokens:
            yield "logprob", math.fsum(float(token["logprob"]) for token in tokens) / len(tokens)
    # usage and time of the output are those of the last call only
    calls = sum(message.get("role") == "assistant" for message in item.get("messages") or ())
    usage = (output.get("usage") if calls == 1 else None) or (item.get("model_usage") or {}).get(model)
    if usage:
        yield from ((name, float(sum(usage.get(part) or 0 for part in parts))) for name, parts in USAGE.items())
        if usage.get("total_cost") is not None:
            yield "cost", float(usage["total_cost"])
    duration_s = output.get("time") if calls == 1 else item.get("working_time")
    if duration_s is not None:
        yield "time_s", float(duration_s)


def _read_completion(choice: Mapping[str, Any]) -> str:
    return _read_text([choice["message"]], {})


def _grade(value: Any) -> float | None:
    """Return a score as a number; ``None`` for lists and words, which state no order."""
    if isinstance(value, str):
        words = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
        return GRADES.get(value, words.get(value.lower()))
    return float(value) if isinstance(value, (bool, int, float)) else None
