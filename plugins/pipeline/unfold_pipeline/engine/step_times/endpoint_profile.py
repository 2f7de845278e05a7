"""What ``unfold profile`` measured at a running engine: phases of streamed requests, stored in the run as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline.engine.step_times.benchmark_runs import BenchmarkRun
from unfoldkit.api import Run
from unfoldkit.safe_io.files import parse_object

SOLO_PHASE, MIXED_PHASE = "prompt", "mixed"
MAX_TOKENS = 1 << 24
SOLO_PAUSE_S = 1.0
MAX_PROCESSES = 1 << 12


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRequest:
    """One streamed request; times in seconds from the start of its phase.

    Attributes:
        start_s: When it was sent.
        event_s: When each event with text arrived.
        end_s: When the last token arrived.
        input_tokens: Prompt tokens.
        output_tokens: Generated tokens.
    """

    start_s: float
    event_s: tuple[float, ...]
    end_s: float
    input_tokens: int
    output_tokens: int

    @property
    def first_s(self) -> float:
        """When the first token arrived."""
        return self.event_s[0]

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.first_s - self.start_s

    @property
    def tpot_s(self) -> float:
        """Time per token after the first; 0 for one token."""
        return (self.end_s - self.first_s) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPhase:
    """Requests that were measured together; ``name`` is ``prompt-N-K`` for one request alone."""

    name: str
    requests: tuple[MeasuredRequest, ...]

    @property
    def is_solo(self) -> bool:
        """Whether the phase is one request alone."""
        return len(self.requests) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointProfile:
    """The measurements of one engine.

    Attributes:
        url: The server.
        model: Its model.
        path: The path of completions.
        tokens_per_word: Prompt tokens per word of the prompts.
        max_context: The longest request that the server reports; 0 if unknown.
        kv_tokens: The KV cache that it reports; 0 if unknown.
        phases: The measurements.
        processes: Processes that were measured at the same time, besides one alone; of local engines.
        capacity: Processes that the cores compute for; 0 if unknown.
        together: The phases of all processes, measured at the same time.
    """

    url: str
    model: str
    path: str
    tokens_per_word: float
    max_context: int
    kv_tokens: int
    phases: tuple[MeasuredPhase, ...]
    processes: int = 1
    capacity: int = 0
    together: tuple[MeasuredPhase, ...] = ()

    @property
    def requests(self) -> int:
        """Number of measured requests."""
        return sum(len(phase.requests) for phase in (*self.phases, *self.together))

    def select_solo(self) -> list[MeasuredRequest]:
        """Return the requests that were alone at the server."""
        return [phase.requests[0] for phase in self.phases if phase.is_solo]


def store_endpoint_profile(stage: str, profile: EndpointProfile, made_from: str, run: Run) -> None:
    """Write the profile of an engine to the run; ``made_from`` is the fingerprint of what was to be measured."""
    data = (json.dumps(asdict(profile), indent=1) + "\n").encode()
    run.directory.write(_name_file(stage), data, made_from=made_from)


def load_endpoint_profile(stage: str, run: Run, *, made_from: str | None = None) -> EndpointProfile | None:
    """Return the profile of an engine if the run has one, of the task ``made_from`` unless that is ``None``.

    Raises:
        UnfoldError: The file is damaged.
    """
    name = _name_file(stage)
    if not run.directory.has(name, made_from=made_from):
        return None
    with run.directory.decoding(name, "a profile of an engine") as data:
        content = parse_object(data)
        phases, together = (
            tuple(
                MeasuredPhase(name=str(phase["name"]), requests=tuple(_parse_request(row) for row in phase["requests"]))
                for phase in rows
            )
            for rows in (content["phases"], content.get("together", ()))
        )
        profile = EndpointProfile(**{**content, "phases": phases, "together": together})
        if not 1 <= int(profile.processes) <= MAX_PROCESSES or not 0 <= int(profile.capacity) <= MAX_PROCESSES:
            raise ValueError("no such number of processes")
        return profile


def build_benchmark_runs(profile: EndpointProfile) -> list[BenchmarkRun]:
    """Return the measurements as benchmark runs, which fit scale and overhead of a table: solo requests are one run."""
    solo = profile.select_solo()
    starts = np.cumsum([0.0, *(request.end_s + SOLO_PAUSE_S for request in solo[:-1])])
    runs = [_build_run(profile, SOLO_PHASE, solo, [float(start) for start in starts])] if solo else []
    runs += [
        _build_run(profile, phase.name, phase.requests, [request.start_s for request in phase.requests])
        for phase in profile.phases
        if not phase.is_solo
    ]
    return runs


def _build_run(
    profile: EndpointProfile, name: str, requests: Sequence[MeasuredRequest], starts: Sequence[float]
) -> BenchmarkRun:
    order = np.argsort(starts, kind="stable")
    ordered = [requests[index] for index in order]
    return BenchmarkRun(
        path=Path(f"{profile.model}/{name}"),
        arrival_s=np.array([starts[index] for index in order]) - min(starts),
        input_tokens=np.array([request.input_tokens for request in ordered], dtype=np.int64),
        output_tokens=np.array([request.output_tokens for request in ordered], dtype=np.int64),
        ttft_s=np.array([request.ttft_s for request in ordered]),
        last_s=np.array([request.end_s - request.start_s for request in ordered]),
        closed_loop=0,
        compares_ttft=True,
        notes=(),
    )


def _name_file(stage: str) -> str:
    return f"profile/{stage}-endpoint.json"


def _parse_request(row: Mapping[str, Any]) -> MeasuredRequest:
    request = MeasuredRequest(**{**row, "event_s": tuple(row["event_s"])})
    times = (request.start_s, *request.event_s, request.end_s)
    if not request.event_s or not all(_is_number(value) and math.isfinite(value) for value in times):
        raise ValueError("a request has no times")
    if not all(
        isinstance(count, int) and 1 <= count <= MAX_TOKENS for count in (request.input_tokens, request.output_tokens)
    ):
        raise ValueError("a request has no tokens")
    if not request.start_s <= request.first_s <= request.end_s:
        raise ValueError("the times of a request are not in order")
    return request


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
