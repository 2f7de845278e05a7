"""Collect a log: every model answers every prompt, within a spending cap; a collection that was killed resumes."""

from __future__ import annotations

import asyncio
import csv
import io
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unfold_cascade.language_models.collection.call_store import CallStore
from unfold_cascade.language_models.collection.scoring import Score
from unfold_cascade.language_models.gateway.completion import Completion, read_confidence
from unfold_cascade.language_models.gateway.plan import ServedModel
from unfold_cascade.language_models.gateway.upstream import Attempts, UpstreamError, Upstreams, worst_cost

CHECK_PROMPT = "Question: {prompt}\n\nProposed answer: {answer}\n\nIs the proposed answer correct? Answer yes or no."
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
        models: the models to call.
        rates: requests per second by model, ``None`` without a limit.
        cap_usd: what all calls may cost together.
        concurrency: calls at once.
        max_tokens: of an answer.
        system: a system message, or empty.
        source: of the confidence: logprob, votes or check.
        of: how log-probabilities become one number.
        samples: of votes.
        check_prompt: of the check.
        judge: the model that judges, ``None`` to score by ``score``.
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
    source: str
    of: str
    samples: int
    check_prompt: str
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
            CapReachedError: they might exceed the cap.
        """
        task = self.task
        request = self._build_request(task.prompts[row])
        worst = self._worst_cost(row, model, request)
        if self.store.committed_usd + worst > task.cap_usd:
            raise CapReachedError
        number = self.store.start(row, model.name, worst)
        await self._keep_rate(model.name)
        attempts, extra, judging, begin = Attempts(), Attempts(), Attempts(), time.perf_counter()
        try:
            completion = await self.upstreams.complete(model, request, _deadline(), attempts)
            latency_ms = 1000.0 * (time.perf_counter() - begin)
            answer, confidence = self._read_answer(completion)
            if task.source == "check":
                confidence = await self._check(row, model, answer, extra)
            is_correct = await self._judge(row, answer, judging)
        except UpstreamError as error:
            self.failures[f"{model.name}: {error.message[:200]}"] += 1
            unpriced = attempts.unpriced + extra.unpriced + judging.unpriced
            cost = attempts.cost_usd + extra.cost_usd + judging.cost_usd + (worst if unpriced else 0.0)
            self.store.finish(number, row, model.name, {"cost_usd": min(cost, worst), "error": error.kind})
            return
        usage = completion.usage or {}
        self.store.finish(
            number,
            row,
            model.name,
            {
                "answer": answer,
                "confidence": confidence,
                "is_correct": is_correct,
                "cost_usd": attempts.cost_usd,
                "confidence_cost_usd": extra.cost_usd,
                "judge_cost_usd": judging.cost_usd,
                "latency_ms": latency_ms,
                "tokens_in": usage.get("prompt_tokens"),
                "tokens_out": usage.get("completion_tokens"),
                "model_reported": completion.model,
            },
        )

    def _build_request(self, prompt: str) -> dict[str, Any]:
        task = self.task
        system = [{"role": "system", "content": task.system}] if task.system else []
        request = {"messages": [*system, {"role": "user", "content": prompt}], "max_tokens": task.max_tokens}
        if task.source == "logprob":
            return {**request, "temperature": 0, "logprobs": True}
        return (
            {**request, "n": task.samples, "temperature": 1}
            if task.source == "votes"
            else {**request, "temperature": 0}
        )

    def _worst_cost(self, row: int, model: ServedModel, request: Mapping[str, Any]) -> float:
        """Bound the cost of a call, with retries that may be charged, its check and its judgement."""
        task = self.task
        answer = "x" * 4 * task.max_tokens
        worst = worst_cost(model, request) * (1 + self.upstreams.limits.retries)
        if task.source == "check":
            worst += worst_cost(model, _yes_no(task.check_prompt, task.prompts[row], answer, ""))
        if task.judge is not None:
            expected = task.expected[row] if task.expected else ""
            worst += worst_cost(task.judge, _yes_no(JUDGE_PROMPT, task.prompts[row], answer, expected))
        return worst

    async def _keep_rate(self, name: str) -> None:
        rates = {model.name: rate for model, rate in zip(self.task.models, self.task.rates, strict=True)}
        rate, now = rates[name], time.monotonic()
        if rate is not None:
            start = max(self.next_start.get(name, now), now)
            self.next_start[name] = start + 1.0 / rate
            await asyncio.sleep(start - now)

    def _read_answer(self, completion: Completion) -> tuple[str, float | None]:
        texts = [choice.text for _, choice in sorted(completion.choices.items())]
        if self.task.source != "votes":
            return texts[0], read_confidence(completion, self.task.of)
        votes = Counter(" ".join(text.split()).casefold() for text in texts)
        winner, count = votes.most_common(1)[0]
        answer = next(text for text in texts if " ".join(text.split()).casefold() == winner)
        return answer, count / len(texts)

    async def _check(self, row: int, model: ServedModel, answer: str, attempts: Attempts) -> float | None:
        """Return P(yes) of a second call that asks whether the answer is correct."""
        request = _yes_no(self.task.check_prompt, self.task.prompts[row], answer, "")
        completion = await self.upstreams.complete(model, request, _deadline(), attempts)
        return read_yes_probability(completion)

    async def _judge(self, row: int, answer: str, attempts: Attempts) -> bool:
        task, expected = self.task, self.task.expected[row] if self.task.expected else ""
        if task.judge is None:
            return task.score(answer, expected)
        request = _yes_no(JUDGE_PROMPT, task.prompts[row], answer, expected)
        completion = await self.upstreams.complete(task.judge, request, _deadline(), attempts)
        return completion.texts[0].strip().lower().startswith("yes")


def read_yes_probability(completion: Completion) -> float | None:
    """Read the probability of yes from the first token: that of the token, or of its contrary."""
    choice = completion.choices[min(completion.choices)]
    if not choice.logprobs:
        return None
    probability = math.exp(min(choice.logprobs[0], 0.0))
    return probability if choice.text.strip().lower().startswith("yes") else 1.0 - probability


def write_log(task: CollectionTask, calls: Mapping[tuple[int, str], Mapping[str, Any]]) -> tuple[bytes, int]:
    """Write the log as CSV: the rows that every model has answered; also return their number."""
    fields = (
        "answer",
        "correct",
        "confidence",
        "cost_usd",
        "confidence_cost_usd",
        "latency_ms",
        "tokens_in",
        "tokens_out",
    )
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
        cells = [cell for answer in answers if answer is not None for cell in _list_cells(answer)]
        writer.writerow([prompt, *([task.groups[row]] if task.groups else []), *cells])
    return stream.getvalue().encode("utf-8", "replace"), count


def _list_cells(answer: Mapping[str, Any]) -> Sequence[Any]:
    return [
        answer["answer"],
        int(bool(answer["is_correct"])),
        "" if answer["confidence"] is None else answer["confidence"],
        answer["cost_usd"],
        answer.get("confidence_cost_usd") or 0.0,
        answer["latency_ms"],
        "" if answer.get("tokens_in") is None else answer["tokens_in"],
        "" if answer.get("tokens_out") is None else answer["tokens_out"],
    ]


def _yes_no(template: str, prompt: str, answer: str, expected: str) -> dict[str, Any]:
    """Build a request for one token, yes or no; the texts are filled in without reading braces in them."""
    texts = {"{prompt}": prompt, "{answer}": answer, "{expected}": expected}
    content = re.sub(r"\{(prompt|answer|expected)\}", lambda match: texts[match[0]], template)
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
    }


def _deadline() -> float:
    return asyncio.get_running_loop().time() + CALL_S
