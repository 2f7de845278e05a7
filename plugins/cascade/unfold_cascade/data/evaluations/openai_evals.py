"""Logs of OpenAI evals (``oaieval``): JSON Lines with the events of one model and task."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unfold_cascade.data.evaluations.sample import Sample
from unfoldkit.api import decode_text, user_error
from unfoldkit.safe_io.files import parse_object

_HEAD = re.compile(rb'\{\s*"spec"\s*:\s*\{[^\n]*"completion_fns"')
_VERDICTS = ("match", "metrics")


def is_openai_log(data: bytes) -> bool:
    """Whether a file is such a log, by its first line."""
    return _HEAD.match(data.removeprefix(b"\xef\xbb\xbf")) is not None


def read_openai_log(file: Path, data: bytes) -> Iterator[tuple[str, str, Sample]]:
    """Yield model, task and sample of a log.

    Raises:
        UnfoldError: A line is not a JSON object, the evaluation did not end, or a sample has two verdicts.
    """
    lines = enumerate(decode_text(data, file).split("\n"), 1)
    items = [parse_object(line, f"{file}:{number}") for number, line in lines if line.strip()]
    spec = items[0]["spec"]
    if not any("final_report" in item for item in items):
        raise user_error("the evaluation has not ended: its log has no final report", file=str(file))
    events: dict[str, dict[str, Any]] = {}
    for item in items:
        if item.get("sample_id"):
            event = events.setdefault(item["sample_id"], {})
            if item["type"] in _VERDICTS and item["type"] in event:
                raise user_error(f"sample {item['sample_id']} has two events {item['type']!r}", file=str(file))
            # a judge that is called later leaves events of sampling too
            event.setdefault(item["type"], item["data"])
    for sample_id, event in events.items():
        prompt = _read_prompt((event.get("sampling") or {}).get("prompt"))
        shared = {"prompt": prompt or sample_id, "content": prompt or None}
        yield "+".join(spec["completion_fns"]), spec["base_eval"], Sample(sample_id, shared, dict(_list_results(event)))


def _read_prompt(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(str(message["content"]) for message in value or ())


def _list_results(event: Mapping[str, Any]) -> Iterator[tuple[str, float | str]]:
    """Yield the verdict of ``match`` events, the numbers of ``metrics`` events, and the answer."""
    if "match" in event:
        yield "correct", float(event["match"]["correct"])
    metrics = event.get("metrics") or {}
    yield from ((name, float(value)) for name, value in metrics.items() if isinstance(value, (bool, int, float)))
    sampled = (event.get("sampling") or {}).get("sampled")
    if sampled:
        answer = sampled[0] if isinstance(sampled, list) else sampled
        yield "answer", answer if isinstance(answer, str) else json.dumps(answer)
