"""The parts of a spec for cascades of language models: token prices, endpoints, confidence, collection and serving."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError

from unfoldkit.api import Duration, Model, Percent

UNITS = {"1": 1.0, "1k": 1e3, "1K": 1e3, "1M": 1e6, "1000": 1e3, "1000000": 1e6}
QUANTILE_SHARES: Mapping[str, float] = {"p50": 0.5, "p90": 0.1, "p95": 0.05, "p99": 0.01}


def parse_token_count(value: Any) -> float:
    """Parse the number of tokens that a price is for, such as ``1M``."""
    unit = UNITS.get(re.sub(r"[\s_,]", "", str(value)))
    if unit is None:
        raise PydanticCustomError("unit", '"{value}" is not 1, 1k or 1M', {"value": str(value)[:20], "hint": "per: 1M"})
    return unit


def format_token_count(value: float) -> str:
    """Write a number of tokens as the spec does."""
    return {1.0: "1", 1e3: "1k"}.get(value, "1M")


TokenCount = Annotated[
    float,
    BeforeValidator(parse_token_count),
    PlainSerializer(format_token_count),
    WithJsonSchema({"type": "string", "enum": ["1", "1k", "1M"]}),
]
Dollars = Annotated[float, Field(ge=0.0, le=1e9)]


class TokenPrice(Model):
    """The price of a call by its tokens: ``in`` includes ``cached`` and ``written`` tokens, as in OpenAI's usage."""

    input: Dollars = Field(alias="in", description="of an input token")
    cached: Dollars | None = Field(default=None, description="of an input token read from the cache; in if omitted")
    written: Dollars | None = Field(default=None, description="of an input token written to the cache; in if omitted")
    out: Dollars = Field(description="of an output token, reasoning included")
    fixed: Dollars = Field(default=0.0, description="of each call, beside its tokens")
    per: TokenCount = Field(default=1e6, description="tokens that in, cached, written and out are for: 1, 1k or 1M")


CallPrice = Annotated[
    Annotated[Dollars, Tag("call")] | Annotated[TokenPrice, Tag("tokens")],
    Discriminator(lambda value: "tokens" if isinstance(value, (Mapping, TokenPrice)) else "call"),
]


class Tokens(Model):
    """Columns of token counts."""

    input: str = Field(alias="in", description="input tokens, the cached and written ones included")
    cached: str | None = Field(default=None, description="input tokens read from the cache")
    written: str | None = Field(default=None, description="input tokens written to the cache")
    out: str = Field(description="output tokens")


class Timeouts(Model):
    """How long an upstream may take."""

    connect: Duration = Field(default=5.0, gt=0.0)
    first_token: Duration = Field(
        default=30.0,
        gt=0.0,
        description="until the first byte of the answer; the last model may take total if it does not stream",
    )
    between_tokens: Duration = Field(default=20.0, gt=0.0)
    total: Duration = Field(default=120.0, gt=0.0, description="of one request over the whole chain")


class Endpoint(Model):
    """An OpenAI-compatible server. Keys come from environment variables and are never stored."""

    url: str = Field(
        pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$", max_length=500, description="the base, such as https://host/v1"
    )
    model: str = Field(min_length=1, max_length=200, description="the name of the model at the endpoint")
    key_env: str | None = Field(
        default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="the environment variable with the API key"
    )
    window: int | None = Field(default=None, ge=1, description="context length in tokens; longer prompts skip it")
    max_tokens: int = Field(
        default=4096, ge=1, le=1_000_000, description="output assumed where a request sets no limit"
    )
    rate: float | None = Field(default=None, gt=0.0, description="requests per second that profile may send")
    http2: bool = Field(default=True, description="offer HTTP/2 over TLS")


class ConfidenceSource(Model):
    """Where a confidence comes from. The plan names it; a change voids the promise."""

    source: Literal["logprob", "votes", "check", "judge", "column"] = Field(
        default="logprob",
        alias="from",
        description="logprob: log-probability of the answer's tokens. votes: share of the most frequent of several "
        "samples, which is returned. check: P(yes) of a second call that asks the same model whether the answer "
        "is correct. judge: P(yes) of another model. column: of the log only, cannot be served",
    )
    of: Literal["mean", "sum", "min", "first"] = Field(
        default="mean", description="logprob: how the tokens' log-probabilities become one number"
    )
    samples: int = Field(default=5, ge=2, le=20, description="votes: answers per request")
    prompt: str | None = Field(
        default=None, max_length=4000, description="check, judge: the question; {prompt} and {answer} are filled in"
    )
    model: str | None = Field(default=None, description="judge: the name of the model of the stage that judges")


class EntrySpec(Model):
    """A gate before the first model: requests skip that model if their prompt seems too hard for it.

    It pays off where the first call costs a large part of what the last one costs.
    """

    features: tuple[Literal["length", "embedding"], ...] = Field(
        default=("length",),
        min_length=1,
        max_length=2,
        description="length (always read): letters, words, lines, digits and marks; embedding: the mean of stored "
        "vectors of the tokens, from the extra embeddings",
    )


class MaxLatency(Model):
    """A limit on a quantile of the latency over the whole chain, certified with the loss."""

    p50: Duration | None = Field(default=None, gt=0.0, description="limit on the median")
    p90: Duration | None = Field(default=None, gt=0.0, description="limit on the 90th percentile")
    p95: Duration | None = Field(default=None, gt=0.0, description="limit on the 95th percentile")
    p99: Duration | None = Field(default=None, gt=0.0, description="limit on the 99th percentile")


class GatewayKey(Model):
    """A client's key, from an environment variable, and what it may spend."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="name of the client in metrics")
    key_env: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="the environment variable with the key")
    budget: Dollars | None = Field(default=None, description="dollars that the key may spend")
    per: Literal["day", "week", "month"] | None = Field(
        default=None, description="period of the budget, which begins anew at its start in UTC; in all if omitted"
    )


class GatewaySpec(Model):
    """How the gateway serves."""

    alias: str = Field(default="auto", min_length=1, max_length=100, description="the model name that takes the route")
    audit: Percent = Field(default=0.02, ge=0.0, le=1.0, description="share of requests that are audited")
    judge: Literal["disagreement", "labels"] = Field(
        default="disagreement",
        description="disagreement: an audited request is also sent to the reference; a different answer counts against "
        "the certified disagreement. labels: POST /v1/audit reports which answers were right",
    )
    sticky: Literal["conversation"] | None = Field(
        default=None, description="conversation: the first turn is routed, later turns stay with its model"
    )
    retries: int = Field(default=2, ge=0, le=10, description="of one upstream, before the next model")
    probe: bool = Field(
        default=True,
        description="call each gated model at the start; the gateway does not start without log-probabilities",
    )
    content_filter: Literal["trust", "escalate"] = Field(
        default="trust", description="an answer cut by a content filter: let the gate decide, or call the next model"
    )
    timeouts: Timeouts = Timeouts()
    keys: tuple[GatewayKey, ...] = Field(default=(), max_length=1000, description="of clients; none: no key is needed")
    body_limit: int = Field(default=4 << 20, ge=1024, le=64 << 20, description="bytes of a request")
    answer_limit: int = Field(default=16 << 20, ge=1024, le=256 << 20, description="bytes of an answer")


class Scoring(Model):
    """How ``profile`` decides whether an answer is correct."""

    by: Literal["exact", "number", "choice", "regex", "function", "judge"] = Field(
        default="exact", description="how an answer is compared with the expected one"
    )
    pattern: str | None = Field(default=None, max_length=1000, description="regex: group 1, or the match, is compared")
    function: str | None = Field(
        default=None, description="module:function of (answer, expected) -> bool; --allow-code"
    )
    model: str | None = Field(default=None, description="judge: the name of a model of the stage")
    tolerance: float = Field(default=1e-6, ge=0.0, description="number: relative difference")


class Collection(Model):
    """How ``profile`` collects the log."""

    cap: Dollars = Field(default=5.0, description="dollars that profile may spend in all")
    concurrency: int = Field(default=8, ge=1, le=256, description="calls at the same time")
    retries: int = Field(default=4, ge=0, le=20, description="of a call that fails")
    max_tokens: int = Field(default=256, ge=1, le=100_000, description="longest answer")
    system: str | None = Field(default=None, max_length=10_000, description="a system message before each prompt")
    score: Scoring = Scoring()
