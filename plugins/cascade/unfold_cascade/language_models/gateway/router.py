"""Routes a request along the chain: which model answers, decided before the first byte goes to the client."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from unfold_cascade.language_models.gateway.confidence import (
    GatedAnswer,
    build_yes_no,
    complete_gated,
    format_prompt,
    worst_gated_cost,
)
from unfold_cascade.language_models.gateway.plan import Gate, GatewayPlan, ServedModel
from unfold_cascade.language_models.gateway.state import GatewayState
from unfold_cascade.language_models.gateway.upstream import (
    OPTIONAL_WORDS,
    Attempts,
    Events,
    UpstreamError,
    Upstreams,
    estimate_tokens,
    worst_cost,
)
from unfold_cascade.language_models.openai_api import chat_request
from unfold_cascade.language_models.openai_api.completion import Completion, find_distrust
from unfold_cascade.language_models.report import sentences
from unfoldkit.api import user_error

REFUSED_FOR_S = 60.0
"""How long a model is left out after its endpoint refused the gateway."""
GATED_SHARE = 0.5
"""Share of the time that is left for a request which a model may take if another can follow."""
REMEMBERED = 20_000
"""Tool calls and conversations for which the model is remembered."""


@dataclass(slots=True)
class Trace:
    """What happened to one request, for headers, metrics and audit; it holds no text of prompt or answer."""

    request_id: str
    deadline: float = 0.0
    promise: str = "none"
    model: str = ""
    steps: list[str] = field(default_factory=list)
    attempts: Attempts = field(default_factory=Attempts)
    started: float = field(default_factory=time.perf_counter)
    gate_ms: float = 0.0
    is_gated: bool = False
    is_audited: bool = False
    unjudged: list[str] = field(default_factory=list)
    """Models that answered without a confidence."""

    def decide(self, model: str, step: str) -> None:
        """Note the model that answers and the time of the decision."""
        self.model = model
        self.steps.append(step)
        self.gate_ms = 1000.0 * (time.perf_counter() - self.started)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: whole (``completion``), or as a stream that is passed on while it arrives (``events``)."""

    completion: Completion | None = None
    events: Events | None = None


@dataclass(slots=True)
class Router:
    """Routes requests by a plan."""

    plan: GatewayPlan
    upstreams: Upstreams
    state: GatewayState
    log: logging.Logger
    refused_until: dict[str, float] = field(default_factory=dict)
    remembered: OrderedDict[bytes, str] = field(default_factory=OrderedDict)
    largest_cost_usd: float = 0.0

    def list_models(self, request: Mapping[str, Any], trace: Trace) -> tuple[str, ...]:
        """List the models to try for a request, and note in the trace what is promised.

        Raises:
            RequestError: There is no such model.
        """
        plan = self.plan
        if request["model"] in plan.models:
            return (request["model"],)
        if request["model"] != plan.alias:
            message = f"there is no model {request['model'][:100]!r}; GET /v1/models lists them"
            raise chat_request.RequestError(404, message, param="model", code="model_not_found")
        trace.promise = self.promise()
        bound = self._find_bound_model(request)
        if bound:
            return (bound,) if bound == plan.reference else (bound, plan.reference)
        if self.state.is_withdrawn:
            return (plan.reference,)
        if not chat_request.is_covered(request, plan.longest_prompt, plan.scripts):
            trace.promise = "unpromised"
            return (plan.reference,)
        trace.is_gated = True
        trace.is_audited = plan.promise is not None and self.is_drawn(trace.request_id)
        chain = plan.chain[self._find_entry(request, trace) :]
        return chain if plan.reference in chain else (*chain, plan.reference)

    async def probe(self) -> None:
        """Call each model that must return log-probabilities for a gate; a model out of reach does not matter here.

        Raises:
            UnfoldError: A model returns no log-probabilities, so that a gate could never open.
        """
        method = self.plan.method
        if method.source == "votes":
            return
        question = "Reply with one word."
        request = (
            {"messages": [{"role": "user", "content": question}], "max_tokens": 1, "logprobs": True}
            if method.source == "logprob"
            else build_yes_no(method.prompt, question, "word")
        )
        deadline = asyncio.get_running_loop().time() + self.plan.limits.first_token_s
        gated = (self.plan.models[name] for name in self.plan.chain[: len(self.plan.gates)])
        for model in {each.name: each for each in (method.find_checker(model) or model for model in gated)}.values():
            try:
                completion = await self.upstreams.complete(model, request, deadline, Attempts())
            except UpstreamError as problem:
                self.log.warning("the probe of %s failed: %s", model.name, problem.message)
                continue
            if not all(choice.logprobs for choice in completion.choices.values()):
                raise user_error(
                    sentences.no_log_probabilities(model.name),
                    key="confidence.from",
                    hint="serve: {probe: false} starts anyway",
                )

    def promise(self) -> str:
        """Return the promise as a header: its text, ``revoked``, ``void`` or ``none``."""
        self.state.refresh()
        if self.state.is_revoked:
            return "revoked"
        if self.state.void_reason:
            return "void"
        return "none" if self.plan.promise is None else self.plan.promise.text

    def worst_cost(self, request: Mapping[str, Any], names: tuple[str, ...], trace: Trace) -> float:
        """Compute an upper bound of what one call of each model costs, and at least the largest cost seen so far."""
        bound = sum(
            worst_cost(self.plan.models[name], request)
            if self._find_gate(name, trace) is None
            else worst_gated_cost(self.plan.models[name], request, self.plan.method)
            for name in names
        )
        return max(bound, self.largest_cost_usd, self.plan.largest_cost_usd)

    async def answer(self, request: Mapping[str, Any], names: tuple[str, ...], trace: Trace) -> Answer:
        """Find the model that answers, and its answer; with a stream the answer of the last model is still arriving.

        Raises:
            UpstreamError: No model answered, or the request itself is at fault.
        """
        error = UpstreamError("busy", 502, "no model could be called")
        for k, name in enumerate(names):
            model, gate = self.plan.models[name], self._find_gate(name, trace)
            has_next = k + 1 < len(names)
            if has_next and (skip := self._find_skip(model, request, is_gated=gate is not None)):
                trace.steps.append(f"{name}:{skip}")
                continue
            try:
                if gate is None:
                    return await self._call_last(model, request, trace, has_next=has_next)
                judged = await self._call_gated(model, request, trace)
            except UpstreamError as problem:
                error = problem
                self._note_failure(name, problem, request, trace, has_next=has_next)
                continue
            completion = judged.completion
            if judged.confidence is None:
                trace.unjudged.append(name)
            probability = gate.calibration.probability(judged.confidence)
            distrust = find_distrust(completion, request, trusts_filtered=self.plan.trusts_filtered)
            shown = f"{probability:.2f}" if probability >= 0.0 else "none"
            if probability >= gate.cut and not distrust:
                trace.decide(name, f"{name}:{shown}>={gate.cut:.2f}")
                return Answer(completion=completion)
            trace.steps.append(f"{name}:{distrust}" if distrust else f"{name}:{shown}<{gate.cut:.2f}")
        raise error

    def remember(self, request: Mapping[str, Any], completion: Completion, model: str) -> None:
        """Remember which model made tool calls, and which one answers a sticky conversation."""
        keys = [b"tool:" + call.encode("utf-8", "replace") for call in completion.tool_call_ids]
        if self.plan.sticky and completion.choices:
            text = completion.first_choice.text
            keys.append(chat_request.conversation_hash(request["messages"], text))
        for key in keys:
            self.remembered[key] = model
            self.remembered.move_to_end(key)
        while len(self.remembered) > REMEMBERED:
            self.remembered.popitem(last=False)

    def check_identity(self, model: str, completion: Completion) -> None:
        """Void the promise if an upstream reports another model or fingerprint than at first; it may report neither."""
        if self.plan.promise is None:
            return
        for part, value in (("model", completion.model), ("fingerprint", completion.fingerprint)):
            if value and not self.state.void_reason and not self.state.check_identity(model, part, value):
                self.log.error("the promise is void: %s; plan again", self.state.void_reason)

    def is_drawn(self, request_id: str) -> bool:
        """Whether a request is audited: a coin from its id and a secret, whatever its content."""
        digest = hmac.digest(self.state.secret, request_id.encode(), "sha256")
        return int.from_bytes(digest[:8], "big") < self.plan.audit_share * 2.0**64

    async def audit(self, request: Mapping[str, Any], answer: tuple[str, ...], trace: Trace) -> None:
        """Compare an answer with that of the reference, and count the difference against the promise."""
        if trace.model == self.plan.reference:
            self.observe(trace.request_id, 0.0)
            return
        plain = {name: value for name, value in request.items() if name not in ("stream", "stream_options", "logprobs")}
        deadline = asyncio.get_running_loop().time() + self.plan.limits.total_s
        try:
            completion = await self.upstreams.complete(
                self.plan.models[self.plan.reference], plain, deadline, Attempts()
            )
        except UpstreamError as problem:
            self.log.warning("an audit got no answer of the reference: %s", problem.message)
            return
        self.check_identity(self.plan.reference, completion)
        self.observe(trace.request_id, 0.0 if _are_equal(answer, completion.texts) else 1.0)

    def observe(self, request_id: str, difference: float) -> None:
        """Count an audited difference against the promise."""
        was_revoked = self.state.is_revoked
        if self.state.observe(request_id, difference) and not was_revoked:
            self.log.error("the promise is revoked: audits show a larger loss; all requests go to the reference")

    def _find_bound_model(self, request: Mapping[str, Any]) -> str:
        """Return the model that a request must stay with: that of its tool calls, or of its conversation."""
        call = chat_request.last_tool_call_id(request)
        if call is not None:
            return self.remembered.get(b"tool:" + call.encode("utf-8", "replace"), self.plan.reference)
        if not self.plan.sticky:
            return ""
        earlier = chat_request.last_answered(request["messages"])
        return self.remembered.get(chat_request.conversation_hash(earlier), "") if earlier else ""

    def _find_entry(self, request: Mapping[str, Any], trace: Trace) -> int:
        """Find the position in the chain at which a request enters, and note in the trace what it skips."""
        entry = self.plan.entry
        position = 0 if entry is None else entry.find_position(format_prompt(request["messages"]))
        trace.steps += [f"{name}:skip" for name in self.plan.chain[:position]]
        return position

    def _find_gate(self, name: str, trace: Trace) -> Gate | None:
        return self.plan.find_gate(name) if trace.is_gated else None

    def _find_skip(self, model: ServedModel, request: Mapping[str, Any], *, is_gated: bool) -> str:
        checker = self.plan.method.find_checker(model) if is_gated else None
        if any(self.refused_until.get(each.name, 0.0) > time.monotonic() for each in (model, checker) if each):
            return "off"
        if is_gated and self.plan.method.source != "logprob" and (request.get("n") or 1) > 1:
            # votes, checks and judgements are of one answer
            return "n"
        return "window" if model.window is not None and estimate_tokens(request) > model.window else ""

    async def _call_gated(self, model: ServedModel, request: Mapping[str, Any], trace: Trace) -> GatedAnswer:
        method = self.plan.method
        # a slow answer must leave the next model time for one
        now = asyncio.get_running_loop().time()
        deadline = now + GATED_SHARE * (trace.deadline - now)
        judged = await complete_gated(
            self.upstreams, model, with_usage(request), method, deadline, trace.attempts, waits=False
        )
        self.check_identity(model.name, judged.completion)
        checker = method.find_checker(model)
        if checker is not None and judged.check is not None:
            self.check_identity(checker.name, judged.check)
        if checker is not None and judged.fault is not None:
            self._note_refusal(checker.name, judged.fault)
        return judged

    async def _call_last(
        self, model: ServedModel, request: Mapping[str, Any], trace: Trace, *, has_next: bool
    ) -> Answer:
        prepared, attempts = with_usage(request), trace.attempts
        if request.get("stream"):
            events = await self.upstreams.open_stream(model, prepared, trace.deadline, attempts)
            trace.decide(model.name, model.name)
            return Answer(events=events)
        completion = await self.upstreams.complete(model, prepared, trace.deadline, attempts, waits=not has_next)
        trace.decide(model.name, model.name)
        return Answer(completion=completion)

    def _note_failure(
        self, name: str, problem: UpstreamError, request: Mapping[str, Any], trace: Trace, *, has_next: bool
    ) -> None:
        """Note why a model did not answer; raise if no other model may be tried."""
        self._note_refusal(name, problem)
        named = f"{problem.message} {problem.param}"
        is_ours = any(word in named for word in OPTIONAL_WORDS if word not in request)
        trace.steps.append(f"{name}:{problem.kind}")
        if (problem.kind == "client" and not is_ours) or not has_next:
            trace.model = name
            raise problem

    def _note_refusal(self, name: str, problem: UpstreamError) -> None:
        if problem.kind == "refused":
            self.refused_until[name] = time.monotonic() + REFUSED_FOR_S
            self.log.error("the endpoint of %s refused the gateway: check its key, credit, URL and model", name)


def with_usage(request: Mapping[str, Any]) -> dict[str, Any]:
    """Request the usage of a stream, whether or not the client wants it."""
    if not request.get("stream"):
        return dict(request)
    return {**request, "stream_options": {**(request.get("stream_options") or {}), "include_usage": True}}


def shape_chunks(chunk: dict[str, Any], request: Mapping[str, Any], model: str) -> Iterator[dict[str, Any]]:
    """Give a chunk (or body) the form that the client asked for: its model name, and no fields it did not ask for."""
    shaped = {**chunk, "model": model}
    if not request.get("logprobs"):
        shaped["choices"] = [
            {name: value for name, value in choice.items() if name != "logprobs"}
            if isinstance(choice, dict)
            else choice
            for choice in chunk.get("choices") or []
        ]
    wants_usage = bool((request.get("stream_options") or {}).get("include_usage"))
    if request.get("stream") and not wants_usage:
        if not chunk.get("choices") and "usage" in chunk:
            return
        shaped.pop("usage", None)
    yield shaped


def _are_equal(answer: tuple[str, ...], reference: tuple[str, ...]) -> bool:
    return [" ".join(text.split()) for text in answer] == [" ".join(text.split()) for text in reference]
