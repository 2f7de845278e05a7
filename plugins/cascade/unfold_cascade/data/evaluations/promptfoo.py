"""Results of promptfoo (``promptfoo eval --output``), as JSON or JSON Lines: all providers in one file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unfold_cascade.data.evaluations.sample import Sample
from unfoldkit.api import decode_text, user_error
from unfoldkit.safe_io.files import parse_object

TASK = "promptfoo"
HEAD_BYTES = 1 << 12
ERROR = 2
"""``failureReason`` of a call that failed, not its answer."""
_DOCUMENT = re.compile(r'\s*\{\s*"(evalId|version)"\s*:[^{\[]{1,200}"results"\s*:\s*[\[{]')
_ROW_KEYS = (b'"promptIdx"', b'"testCase"', b'"provider"')


def has_promptfoo_results(data: bytes) -> bool:
    """Whether a file holds results of promptfoo."""
    head, line = data[:HEAD_BYTES].decode("utf-8-sig", "replace"), data.partition(b"\n")[0]
    return (_DOCUMENT.match(head) is not None and _ROW_KEYS[0] in data) or all(key in line for key in _ROW_KEYS)


def read_promptfoo(file: Path, data: bytes) -> Iterator[tuple[str, str, Sample]]:
    """Yield model, task and sample; a provider with several prompts is a model for each.

    Raises:
        UnfoldError: A line is not a JSON object, or two providers share a name.
    """
    rows = list(_list_rows(file, decode_text(data, file)))
    names = _name_models(file, rows)
    for row in rows:
        variables = json.dumps(row.get("vars") or {}, sort_keys=True)
        shared = {"prompt": str(row["prompt"]["raw"]), "content": variables}
        request = str(row.get("testIdx", variables))
        yield names[row.get("promptIdx", 0)], TASK, Sample(request, shared, dict(_list_results(row)))


def _list_rows(file: Path, text: str) -> Iterator[dict[str, Any]]:
    if _DOCUMENT.match(text) is not None:
        results = parse_object(text, str(file))["results"]
        yield from results["results"] if isinstance(results, dict) else results
        return
    lines = enumerate(text.split("\n"), 1)
    yield from (parse_object(line, f"{file}:{number}") for number, line in lines if line.strip())


def _name_models(file: Path, rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Name the model of each index of a provider and a prompt: the provider, with a number if it has several prompts.

    Raises:
        UnfoldError: Two providers share a name, so that their results cannot be distinguished.
    """
    prompts: dict[str, dict[int, str]] = {}
    for row in rows:
        provider = row["provider"]
        name = provider.get("label") or provider["id"] if isinstance(provider, dict) else provider
        prompts.setdefault(name, {})[row.get("promptIdx", 0)] = json.dumps(row["prompt"].get("label"))
    names: dict[int, str] = {}
    for name, labels in prompts.items():
        if len(set(labels.values())) < len(labels):
            raise user_error(f"two providers are called {name!r}", file=str(file), hint="give each a label")
        numbered = enumerate(sorted(labels), 1)
        names.update({index: name if len(labels) == 1 else f"{name} prompt {number}" for number, index in numbered})
    return names


def _list_results(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield verdict, scores, answer, log-probability, tokens, cost and latency; nothing of a call that failed."""
    response = row.get("response") or {}
    if row.get("failureReason") == ERROR or response.get("error") or response.get("output") is None:
        return
    grading = row.get("gradingResult") or {}
    if grading.get("componentResults"):
        # a test without assertions always passes
        yield "pass", float(row["success"])
        yield "score", float(row["score"])
        yield from ((name, float(value)) for name, value in (row.get("namedScores") or {}).items())
    output = response["output"]
    yield "answer", output if isinstance(output, str) else json.dumps(output)
    logprobs = response.get("logProbs")
    if logprobs:
        yield "logprob", math.fsum(map(float, logprobs)) / len(logprobs)
    if response.get("cached"):
        # promptfoo states neither the tokens nor the price nor the duration of the call that filled its cache
        return
    usage = response.get("tokenUsage") or {}
    yield from ((f"{name}_tokens", float(usage[name])) for name in ("prompt", "completion") if usage.get("total"))
    if response.get("cost") is not None:
        # the cost beside the response is 0 where the provider states none
        yield "cost", float(response["cost"])
    if row.get("latencyMs") is not None:
        yield "latency_ms", float(row["latencyMs"])
