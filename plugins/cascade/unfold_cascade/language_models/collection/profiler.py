"""Collect a log: every model answers every prompt, within a spending cap; a collection that was killed resumes."""

from __future__ import annotations

import asyncio
import csv
import io
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unfold_cascade.language_models.collection.call_store import CallStore
from unfold_cascade.language_models.collection.scoring import Score
from unfold_cascade.language_models.gateway.confidence import (
    SAMPLE_TEMPERATURE,
    GatedAnswer,
    build_yes_no,
    complete_gated,
    worst_gated_cost,
)
from unfold_cascade.language_models.gateway.plan import ConfidenceMethod, ServedModel
from unfold_cascade.language_models.gateway.upstream import Attempts, UpstreamError, Upstreams, worst_cost

JUDGE_PROMPT = (
    "Question: {prompt}\n\nExpected answer: {expected}\n\nGiven answer: {answer}\n\n"
    "Does the given answer mean the same as the expected one? Answer yes or no."
)
CALL_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionTask:
    """What to collect.

    Attributes:
        prompts: (n,) prompts.
        expected: (n,) expected answers, or empty.
        groups: (n,) groups, or empty.
        models: The models to call.
        rates: Requests per second by model, ``None`` without a limit.
        cap_usd: What all calls may cost together.
        concurrency: Calls at once.
        max_tokens: Of an answer.
        system: A system message, or empty.
        method: Of the confidences, as the gateway will obtain them.
        judge: The model that compares answers with the expected ones, ``None`` to score by ``score``.
    """

    prompts: tuple[str, ...]
    expected: tuple[str, ...]
    groups: tuple[str, ...]
    models: tuple[ServedModel, ...]
    rates: tuple[float | None, ...]
    cap_usd: float
    concurrency: int
    max_tokens: int
    system: str
    method: ConfidenceMethod
    score: Score
    judge: ServedModel | None

    @property
    def calls(self) -> int:
        """The number of answers to collect."""
        return len(self.prompts) * len(self.models)


class CapReachedError(Exception):
    """The next call might exceed the cap."""


@dataclass(slots=True)
class Collector:
    """Makes the calls of a task that a store does not hold yet."""

    task: CollectionTask
    store: CallStore
    upstreams: Upstreams
    report_progress: Callable[[int, int, float], None]
    next_start: dict[str, float] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    is_capped: bool = False

    async def collect(self) -> None:
        """Make the missing calls; stop where the next one might exceed the cap."""
        limit = asyncio.Semaphore(self.task.concurrency)
        missing = [
            (row, model)
            for row in range(len(self.task.prompts))
            for model in self.task.models
            if (row, model.name) not in self.store.finished
        ]

        async def run(row: int, model: ServedModel) -> None:
            async with limit:
                if self.is_capped:
                    return
                try:
                    await self._call(row, model)
                except CapReachedError:
                    self.is_capped = True
                self.report_progress(len(self.store.finished), self.task.calls, self.store.spent_usd)

        async with asyncio.TaskGroup() as group:
            for row, model in missing:
                group.create_task(run(row, model))

    async def _call(self, row: int, model: ServedModel) -> None:
        """Make one call, its confidence and its judgement, and store them.

        Raises:
            CapReachedError: They might exceed the cap.
        """
        task = self.task
        request = self._build_request(task.prompts[row])
        worst = self._worst_cost(row, model, request)
        if self.store.committed_usd + worst > task.cap_usd:
            raise CapReachedError
        number = self.store.start(row, model.name, worst)
        await self._wait_for_rate_limit(model.name)
        attempts, judging, begin = Attempts(), Attempts(), time.perf_counter()
        try:
            judged = await complete_gated(self.upstreams, model, request, task.method, _deadline(), attempts)
            if judged.fault is not None:
                raise judged.fault
            checked_s = time.perf_counter() - begin - judged.answered_s
            scores = await self._score(row, judged, judging)
        except UpstreamError as error:
            self.failures[f"{model.name}: {error.message[:200]}"] += 1
            is_unknown = attempts.unpriced + judging.unpriced > 0
            cost = attempts.cost_usd + judging.cost_usd + (worst if is_unknown else 0.0)
            self.store.finish(number, row, model.name, {"cost_usd": min(cost, worst), "error": error.kind})
            return
        usage = judged.plain.usage or {}
        self.store.finish(
            number,
            row,
            model.name,
            {
                **scores,
                "confidence": judged.confidence,
                "cost_usd": attempts.cost_usd - attempts.confidence_usd,
                "confidence_cost_usd": attempts.confidence_usd,
                "judge_cost_usd": judging.cost_usd,
                "latency_ms": 1000.0 * judged.answered_s,
                "confidence_latency_ms": 1000.0 * checked_s,
                "tokens_in": usage.get("prompt_tokens"),
                "tokens_out": usage.get("completion_tokens"),
                "model_reported": judged.plain.model,
            },
        )

    async def _score(self, row: int, judged: GatedAnswer, judging: Attempts) -> dict[str, Any]:
        """Score the answer where no gate follows, and the one which a gate trusts; they differ for votes only."""
        plain, gated = ("".join(each.texts) for each in (judged.plain, judged.completion))
        is_correct = await self._judge(row, plain, judging)
        is_gated_correct = is_correct if gated == plain else await self._judge(row, gated, judging)
        scores = {"answer": plain, "is_correct": is_correct}
        if self.task.method.source == "votes":
            scores |= {"gated_answer": gated, "is_gated_correct": is_gated_correct}
        return scores

    def _build_request(self, prompt: str) -> dict[str, Any]:
        task = self.task
        system = [{"role": "system", "content": task.system}] if task.system else []
        request = {"messages": [*system, {"role": "user", "content": prompt}], "max_tokens": task.max_tokens}
        return {**request, "temperature": SAMPLE_TEMPERATURE if task.method.source == "votes" else 0}

    def _worst_cost(self, row: int, model: ServedModel, request: Mapping[str, Any]) -> float:
        """Bound the cost of a call with its confidence, retries that may be charged, and its judgements."""
        task = self.task
        worst = worst_gated_cost(model, request, task.method) * (1 + self.upstreams.limits.retries)
        if task.judge is not None:
            answer, expected = "x" * 4 * task.max_tokens, task.expected[row] if task.expected else ""
            judgement = worst_cost(task.judge, build_yes_no(JUDGE_PROMPT, task.prompts[row], answer, expected))
            worst += judgement * (2 if task.method.source == "votes" else 1)
        return worst

    async def _wait_for_rate_limit(self, name: str) -> None:
        rates = {model.name: rate for model, rate in zip(self.task.models, self.task.rates, strict=True)}
        rate, now = rates[name], time.monotonic()
        if rate is not None:
            start = max(self.next_start.get(name, now), now)
            self.next_start[name] = start + 1.0 / rate
            await asyncio.sleep(start - now)

    async def _judge(self, row: int, answer: str, attempts: Attempts) -> bool:
        task, expected = self.task, self.task.expected[row] if self.task.expected else ""
        if task.judge is None:
            return task.score(answer, expected)
        request = build_yes_no(JUDGE_PROMPT, task.prompts[row], answer, expected)
        completion = await self.upstreams.complete(task.judge, request, _deadline(), attempts)
        return completion.texts[0].strip().lower().startswith("yes")


def write_log(task: CollectionTask, calls: Mapping[tuple[int, str], Mapping[str, Any]]) -> tuple[bytes, int]:
    """Write the log as CSV: the rows that every model has answered; also return their number."""
    fields = [
        "answer",
        "correct",
        "confidence",
        "cost_usd",
        "confidence_cost_usd",
        "latency_ms",
        "tokens_in",
        "tokens_out",
    ]
    # of one sample and of the majority
    has_votes = task.method.source == "votes"
    fields += ["confidence_latency_ms", *(("gated_correct", "gated_answer") if has_votes else ())]
    names = [model.name for model in task.models]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["prompt", *(["group"] if task.groups else []), *(f"{n}|{f}" for n in names for f in fields)])
    count = 0
    for row, prompt in enumerate(task.prompts):
        answers = [calls.get((row, name)) for name in names]
        if any(answer is None for answer in answers):
            continue
        count += 1
        cells = [cell for answer in answers if answer is not None for cell in _list_cells(answer, has_votes=has_votes)]
        writer.writerow([prompt, *([task.groups[row]] if task.groups else []), *cells])
    return stream.getvalue().encode("utf-8", "replace"), count


def _list_cells(answer: Mapping[str, Any], *, has_votes: bool) -> Sequence[Any]:
    gated = [int(bool(answer["is_gated_correct"])), answer["gated_answer"]] if has_votes else []
    return [
        answer["answer"],
        int(bool(answer["is_correct"])),
        "" if answer["confidence"] is None else answer["confidence"],
        answer["cost_usd"],
        answer.get("confidence_cost_usd") or 0.0,
        answer["latency_ms"],
        "" if answer.get("tokens_in") is None else answer["tokens_in"],
        "" if answer.get("tokens_out") is None else answer["tokens_out"],
        answer.get("confidence_latency_ms") or 0.0,
        *gated,
    ]


def _deadline() -> float:
    return asyncio.get_running_loop().time() + CALL_S
