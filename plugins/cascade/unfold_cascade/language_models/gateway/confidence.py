"""Answers that a gate may trust, and their confidences: log-probabilities, votes, a self-check, or a judge model.

Votes: Wang et al. 2023, Self-Consistency Improves Chain of Thought Reasoning (ICLR, arXiv 2203.11171). Checks: P(true)
of Kadavath et al. 2022, Language Models (Mostly) Know What They Know (arXiv 2207.05221). ``profile`` and the gateway
both call this module, so that a confidence means the same in the log and when it is served.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unfold_cascade.language_models.gateway.plan import ConfidenceMethod, ServedModel
from unfold_cascade.language_models.gateway.upstream import (
    Attempts,
    UpstreamError,
    Upstreams,
    count_output_tokens,
    worst_cost,
)
from unfold_cascade.language_models.openai_api.completion import Completion, read_confidence, select_choice

SAMPLING = frozenset({"n", "seed", "temperature", "top_p", "top_k", "min_p"})
"""Fields of a request that would make its samples alike; they are not sent with votes."""
SAMPLE_TEMPERATURE = 1
ALTERNATIVES = 5
"""Most likely first tokens that are requested of a check, so that both yes and no are among them."""
BYTES_PER_TOKEN = 4
YES, NO = "yes", "no"
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(slots=True, kw_only=True)
class GatedAnswer:
    """An answer before a gate.

    Attributes:
        completion: The answer to return if it is trusted; of votes, the first sample of the majority.
        plain: The answer that the model gives where no gate follows; of votes, the first sample.
        confidence: ``None`` if there is none, so that the answer must not be trusted.
        check: What the checking model answered, if it did.
        fault: Why it did not.
        answered_s: Seconds until the answer, without its check.
    """

    completion: Completion
    plain: Completion
    confidence: float | None
    check: Completion | None = None
    fault: UpstreamError | None = None
    answered_s: float = 0.0


async def complete_gated(
    upstreams: Upstreams,
    model: ServedModel,
    request: Mapping[str, Any],
    method: ConfidenceMethod,
    deadline: float,
    attempts: Attempts,
    *,
    waits: bool = True,
) -> GatedAnswer:
    """Send a request to be judged by a gate, and obtain the confidence of the answer.

    Args:
        upstreams: The endpoints.
        model: The model to call.
        request: The body, without the name of the model.
        method: Of the confidence.
        deadline: Time of the event loop that all calls share.
        attempts: Counts all calls, and what the confidence costs of them.
        waits: Whether to wait long for the answer, see ``Upstreams.complete``.

    Raises:
        UpstreamError: The model gave no answer.
    """
    begin = time.perf_counter()
    if method.source == "votes":
        answer = await _vote(upstreams, model, request, method, deadline, attempts, waits=waits)
    else:
        body = {**request, "logprobs": True} if method.source == "logprob" else dict(request)
        completion = await upstreams.complete(model, body, deadline, attempts, waits=waits)
        confidence = read_confidence(completion, method.of) if method.source == "logprob" else None
        answer = GatedAnswer(completion=completion, plain=completion, confidence=confidence)
    answer.answered_s = time.perf_counter() - begin
    checker = method.find_checker(model)
    if checker is not None and any(text.strip() for text in answer.completion.texts):
        await _check(upstreams, checker, request, method, deadline, attempts, answer, waits=waits)
    return answer


def build_yes_no(template: str, prompt: str, answer: str, expected: str = "") -> dict[str, Any]:
    """Build a request for one token, yes or no; the texts are filled in without reading braces in them."""
    texts = {"{prompt}": prompt, "{answer}": answer, "{expected}": expected}
    content = re.sub(r"\{(prompt|answer|expected)\}", lambda match: texts[match[0]], template)
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": ALTERNATIVES,
    }


def read_yes_probability(completion: Completion) -> float | None:
    """Read the probability of yes, against that of no, from the first token and its alternatives.

    A word that is not listed counts with the least probability of the list, which bounds it.

    Returns:
        ``None`` without log-probabilities, or if neither word is among them.
    """
    choice = completion.first_choice
    if not choice.logprobs:
        return None
    listed = choice.alternatives or [(choice.text, choice.logprobs[0])]
    weights = {YES: 0.0, NO: 0.0}
    for token, logprob in listed:
        word = _WORD.search(token)
        if word is not None and word[0].casefold() in weights:
            weights[word[0].casefold()] += math.exp(min(logprob, 0.0))
    if not any(weights.values()):
        return None
    if len(listed) == 1:
        return weights[YES] or 1.0 - weights[NO]
    least = math.exp(min(*(logprob for _, logprob in listed), 0.0))
    yes, no = (weight or least for weight in (weights[YES], weights[NO]))
    return yes / (yes + no) if yes + no > 0.0 else None


def format_prompt(messages: Sequence[Mapping[str, Any]]) -> str:
    """Write the prompt of a check: the text of the one message, or a transcript; system messages are left out."""
    turns = [message for message in messages if message.get("role") not in ("system", "developer")]
    if len(turns) == 1:
        return read_text(turns[0])
    return "\n".join(f"{message.get('role')}: {read_text(message)}" for message in turns)


def read_text(message: Mapping[str, Any]) -> str:
    """Return the text of a message, or its tool calls as JSON."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if isinstance(content, str):
        return content
    calls = message.get("tool_calls")
    return json.dumps(calls, ensure_ascii=False) if calls else ""


def normalize_answer(text: str) -> str:
    """Normalize an answer for votes: white space, case, and points at its end do not count."""
    return " ".join(text.split()).casefold().rstrip(".!")


def worst_gated_cost(model: ServedModel, request: Mapping[str, Any], method: ConfidenceMethod) -> float:
    """Compute an upper bound of what an answer and its confidence cost, without retries."""
    worst = worst_cost(model, request)
    if method.source == "votes":
        # an upstream without ``n`` is called once per sample
        return worst * method.samples
    checker = method.find_checker(model)
    if checker is None:
        return worst
    limit = request.get("max_completion_tokens") or request.get("max_tokens") or model.max_tokens
    highest = max(checker.prices.input, checker.prices.cached, checker.prices.written)
    empty = build_yes_no(method.prompt, format_prompt(request.get("messages", ())), "")
    return worst + worst_cost(checker, empty) + BYTES_PER_TOKEN * limit * highest


async def _vote(
    upstreams: Upstreams,
    model: ServedModel,
    request: Mapping[str, Any],
    method: ConfidenceMethod,
    deadline: float,
    attempts: Attempts,
    *,
    waits: bool,
) -> GatedAnswer:
    """Draw samples in one call, or in several where an upstream ignores or refuses ``n``; a lost one agrees with none.

    Raises:
        UpstreamError: No first sample came.
    """
    single = {
        **{name: value for name, value in request.items() if name not in SAMPLING},
        "temperature": SAMPLE_TEMPERATURE,
    }
    try:
        first = await upstreams.complete(model, {**single, "n": method.samples}, deadline, attempts, waits=waits)
    except UpstreamError as problem:
        if problem.kind != "client":
            raise
        first = await upstreams.complete(model, single, deadline, attempts, waits=waits)
    count = len(first.choices)
    # every sample has the same length on average, and the input is read once
    attempts.confidence_usd += count_output_tokens(first) * model.prices.output * (1.0 - 1.0 / count)
    before = attempts.cost_usd
    missing = range(max(method.samples - count, 0))
    more = await asyncio.gather(*(_draw(upstreams, model, single, deadline, attempts, waits=waits) for _ in missing))
    attempts.confidence_usd += attempts.cost_usd - before
    calls = [first, *(call for call in more if call is not None)]
    samples = [select_choice(call, index) for call in calls for index in sorted(call.choices)][: method.samples]
    keys = [normalize_answer("".join(sample.texts)) for sample in samples]
    winner, votes = Counter(keys).most_common(1)[0]
    return GatedAnswer(completion=samples[keys.index(winner)], plain=samples[0], confidence=votes / method.samples)


async def _draw(
    upstreams: Upstreams,
    model: ServedModel,
    request: Mapping[str, Any],
    deadline: float,
    attempts: Attempts,
    *,
    waits: bool,
) -> Completion | None:
    """Draw one sample; ``None`` if the model does not answer."""
    try:
        return await upstreams.complete(model, request, deadline, attempts, waits=waits)
    except UpstreamError:
        return None


async def _check(
    upstreams: Upstreams,
    checker: ServedModel,
    request: Mapping[str, Any],
    method: ConfidenceMethod,
    deadline: float,
    attempts: Attempts,
    answer: GatedAnswer,
    *,
    waits: bool,
) -> None:
    """Request yes or no about an answer; without a reply the answer has no confidence, and what it cost counts."""
    text = "".join(answer.completion.texts)
    question, before = build_yes_no(method.prompt, format_prompt(request["messages"]), text), attempts.cost_usd
    try:
        answer.check = await upstreams.complete(checker, question, deadline, attempts, waits=waits)
        answer.confidence = read_yes_probability(answer.check)
    except UpstreamError as problem:
        answer.fault = problem
    finally:
        attempts.confidence_usd += attempts.cost_usd - before
