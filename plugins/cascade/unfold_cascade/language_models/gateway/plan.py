"""What a gateway serves: the route of a plan, the endpoints of its models, and the limits of the service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from unfold_cascade.language_models.planning.calibration import Calibration
from unfold_cascade.language_models.planning.prices import TokenPrices
from unfold_cascade.language_models.planning.prompt_features import PromptReader
from unfold_cascade.language_models.planning.prompt_gate import EntryRule, PromptScorer

Source = Literal["logprob", "votes", "check", "judge"]
CHECK_PROMPT = "Question: {prompt}\n\nProposed answer: {answer}\n\nIs the proposed answer correct? Answer yes or no."


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model behind an OpenAI-compatible endpoint.

    Attributes:
        name: In the plan.
        url: Base of the endpoint, from the spec only.
        upstream_model: Its name at the endpoint.
        key: API key, from the environment; empty for none. Never stored, never shown.
        prices: Of its tokens.
        confidence_prices: Of a call that checks one of its answers; ``None``: the prices of the model that checks.
        window: Context length in tokens, ``None`` if unknown.
        max_tokens: Output assumed where a request sets no limit.
        http2: Whether to offer HTTP/2.
    """

    name: str
    url: str
    upstream_model: str
    key: str = field(default="", repr=False)
    prices: TokenPrices = field(default_factory=TokenPrices)
    confidence_prices: TokenPrices | None = None
    window: int | None = None
    max_tokens: int = 4096
    http2: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceMethod:
    """How the confidence of an answer is obtained.

    Attributes:
        source: ``logprob``: of the tokens of the answer. ``votes``: share of the most frequent of several samples.
            ``check``: P(yes) of a second call of the same model. ``judge``: P(yes) of another model.
        of: How log-probabilities of tokens become one number.
        samples: Of votes.
        prompt: Of a check or judge; ``{prompt}`` and ``{answer}`` are filled in.
        judge: The model that judges; ``None`` for other sources.
    """

    source: Source = "logprob"
    of: str = "mean"
    samples: int = 5
    prompt: str = CHECK_PROMPT
    judge: ServedModel | None = None

    def find_checker(self, model: ServedModel) -> ServedModel | None:
        """Return the model that checks the answers of a model, at the price of its confidences; ``None`` if none."""
        if self.source not in ("check", "judge"):
            return None
        checker = self.judge or model
        return checker if model.confidence_prices is None else replace(checker, prices=model.confidence_prices)


@dataclass(frozen=True, slots=True)
class Gate:
    """Trusts an answer from this probability of being correct upwards."""

    cut: float
    calibration: Calibration


@dataclass(frozen=True, slots=True)
class EntryGate:
    """Decides by its prompt at which model of the chain a request enters.

    Attributes:
        rule: The price of an entry, and the mean cost of every model.
        reader: Of the features of prompts.
        scorer: Of these features.
        chain: Numbers of the models of the chain, as rule and scorer count them.
    """

    rule: EntryRule
    reader: PromptReader
    scorer: PromptScorer
    chain: tuple[int, ...]

    def find_position(self, prompt: str) -> int:
        """Find the position in the chain at which a prompt enters."""
        probability = self.scorer.probabilities(self.reader.read([prompt]))
        return int(self.rule.find_entries(probability, self.chain)[0])


PERIOD_FORMATS = {"day": "%Y-%m-%d", "week": "%G-W%V", "month": "%Y-%m"}
"""How the day, week or month of a budget is written in the name of its account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKey:
    """A client's key and what it may spend.

    Attributes:
        name: Of the client.
        key: The secret.
        budget_usd: What it may spend in dollars; ``None`` without a limit.
        period: In which it may spend that; ``None`` if the budget is one for all time.
    """

    name: str
    key: str = field(repr=False)
    budget_usd: float | None = None
    period: Literal["day", "week", "month"] | None = None

    def name_account(self, now_s: float) -> str:
        """Name what a request is charged to: the client, or its day, ISO week or month in UTC.

        Args:
            now_s: Time in seconds since 1970.
        """
        if self.period is None:
            return self.name
        now = datetime.fromtimestamp(now_s, UTC)
        # no name of a client holds an @
        return f"{self.name}@{now:{PERIOD_FORMATS[self.period]}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamLimits:
    """Times in seconds and sizes in bytes that an upstream is allowed."""

    connect_s: float = 5.0
    first_token_s: float = 30.0
    between_tokens_s: float = 20.0
    total_s: float = 120.0
    retries: int = 2
    answer_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The promise of a plan.

    Attributes:
        max_loss: Accuracy that may be lost against the reference.
        confidence: Of the certificate.
        audit_limit: Mean of the audited differences that the promise allows; ``None`` if it cannot be audited.
    """

    max_loss: float
    confidence: float
    audit_limit: float | None = None

    @property
    def text(self) -> str:
        """The promise as a header: ``2pt@95``."""
        return f"{100 * self.max_loss:g}pt@{100 * self.confidence:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPlan:
    """A plan, ready to be served.

    Attributes:
        name: Of the service.
        alias: The model name which takes the route.
        models: By name.
        chain: Names of the models of the route; the last one is always trusted.
        gates: Of every model of the chain but the last.
        reference: Name of the reference.
        promise: ``None`` without a certificate.
        plan_hash: Identifies the plan.
        longest_prompt: Characters of the longest logged prompt, ``None`` if unknown.
        scripts: That logged prompts are written in; empty if unknown.
        method: Of the confidences which the gates read.
        entry: The gate before the first model, ``None``: every request enters there.
        sticky: Later turns stay with the model of the first.
        trusts_filtered: Whether an answer with finish reason ``content_filter`` may be trusted.
        audit_share: Share of requests which are audited.
        audits_labels: Whether audits wait for labels instead of comparing texts.
        is_probed: Whether each gated model is called at the start.
        limits: Of upstreams.
        body_bytes: Largest request.
        keys: Of clients; empty if none is needed.
        largest_cost_usd: Of one request in the log; at least this is set aside for a request with a budget.
    """

    name: str
    alias: str
    models: Mapping[str, ServedModel]
    chain: tuple[str, ...]
    gates: tuple[Gate, ...]
    reference: str
    promise: Promise | None
    plan_hash: str
    longest_prompt: int | None = None
    scripts: frozenset[str] = frozenset()
    method: ConfidenceMethod = field(default_factory=ConfidenceMethod)
    entry: EntryGate | None = None
    sticky: bool = False
    trusts_filtered: bool = True
    audit_share: float = 0.02
    audits_labels: bool = False
    is_probed: bool = False
    limits: UpstreamLimits = UpstreamLimits()
    body_bytes: int = 4 << 20
    keys: tuple[ClientKey, ...] = ()
    largest_cost_usd: float = 0.0

    def find_gate(self, name: str) -> Gate | None:
        """Return the gate after a model of the chain; ``None`` for the last model and for others."""
        return next((gate for member, gate in zip(self.chain, self.gates, strict=False) if member == name), None)
