"""Checks between the keys of a cascade of language models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from unfold_cascade.schema.language_models import ConfidenceSource, TokenPrice
from unfold_cascade.schema.spec_sections import ModelSpec, Recorded
from unfold_cascade.schema.splits import Split
from unfoldkit.api import Problem

if TYPE_CHECKING:
    from unfold_cascade.schema.cascade import CascadeSpec

Path = tuple[str | int, ...]
COLUMNS = (
    "tokens",
    "latency",
    "answer",
    "price_of_confidence",
    "confidence_latency",
    "gated_score",
    "gated_answer",
)
"""Keys of ``recorded`` that only language models have."""
UNREAD = (("goal", "min_saving"), ("goal", "attempts"), ("gates", "confidence"), ("gates", "bins"), ("gates", "learnt"))
"""Keys of other cascades: with one of these, a plan would promise what was not asked for."""


def has_language_model_keys(spec: CascadeSpec) -> bool:
    """Whether a spec of scored answers uses a key that only language models have."""
    has_keys = any((spec.confidence, spec.entry, spec.collect, spec.serve, spec.goal.max_latency, spec.goal.test))
    return has_keys or any(_has_keys(model) for stage in spec.stages for model in stage.models)


def _has_keys(model: ModelSpec) -> bool:
    columns = model.recorded
    has_columns = columns is not None and any(getattr(columns, key) is not None for key in COLUMNS)
    is_priced = isinstance(model.price, TokenPrice) or model.price_of_confidence is not None
    return has_columns or is_priced or model.endpoint is not None


def key_problems(spec: CascadeSpec) -> Iterator[Problem]:
    """Yield the keys of language models in a spec of other models."""
    if spec.is_language_model:
        return
    hint = "needs recorded scores (recorded: {score: COLUMN}) or data: {source: endpoints}"
    for key in ("confidence", "entry", "collect", "serve"):
        if getattr(spec, key) is not None:
            yield Problem((key,), "applies to language models only", hint, at_key=True)
    for key in ("max_latency", "test"):
        if getattr(spec.goal, key) is not None:
            yield Problem(("goal", key), "applies to language models only", hint, at_key=True)
    for s, stage in enumerate(spec.stages):
        for m, model in enumerate(stage.models):
            yield from _misplaced_problems(model, ("stages", s, "models", m), hint)


def _misplaced_problems(model: ModelSpec, path: Path, hint: str) -> Iterator[Problem]:
    for key in ("endpoint", "price_of_confidence"):
        if getattr(model, key) is not None:
            yield Problem((*path, key), "applies to language models only", hint, at_key=True)
    if isinstance(model.price, TokenPrice):
        yield Problem((*path, "price"), "token prices apply to language models only", hint, at_key=True)
    for key in COLUMNS:
        if model.recorded is not None and getattr(model.recorded, key) is not None:
            hint = "score: COLUMN instead of prediction"
            yield Problem((*path, "recorded", key), "applies to language models only", hint, at_key=True)


def language_model_problems(spec: CascadeSpec) -> Iterator[Problem]:
    """Yield contradictions in a spec of language models."""
    if len(spec.stages) > 1:
        yield Problem(("stages",), "a cascade of language models has one stage")
    if len(spec.stages[0].models) < 2:
        yield Problem(("stages", 0, "models"), "needs at least two models")
    names = [model.name for model in spec.stages[0].models]
    for m, model in enumerate(spec.stages[0].models):
        if model.name in names[:m]:
            yield Problem(("stages", 0, "models", m, "name"), f'the name "{model.name}" is taken')
        score = _score_of(model)
        twin = next((each for each in spec.stages[0].models[:m] if score and _score_of(each) == score), None)
        if twin is not None:
            hint = "write one row per request, with columns of each model"
            yield Problem(("stages", 0, "models", m, "recorded", "score"), f"is the column of {twin.name}", hint)
        yield from _model_problems(spec, model, ("stages", 0, "models", m))
    yield from _unread_problems(spec)
    recorded = [model.recorded for model in spec.stages[0].models if model.recorded is not None]
    if recorded and all(columns.confidence is None for columns in recorded):
        message = "no model has a confidence, so no gate could trust an answer"
        yield Problem(("stages", 0, "models", 0, "recorded"), message, "recorded: {score: COLUMN, confidence: COLUMN}")
    if not isinstance(spec.data.split, Split):
        hint = "split: {train: 25%, calibrate: 60%, test: 15%}"
        yield Problem(("data", "split"), "a log of language models is split at random, by shares", hint)
    yield from _latency_problems(spec)
    yield from _serving_problems(spec, names)


def _score_of(model: ModelSpec) -> str | None:
    return None if model.recorded is None else model.recorded.score


def _unread_problems(spec: CascadeSpec) -> Iterator[Problem]:
    for key in ("features", "baseline", "moves", "alerts", "drift"):
        if getattr(spec, key):
            yield Problem((key,), "has no effect on language models", at_key=True)
    if spec.goal.budget is not None:
        yield Problem(("goal", "budget"), "language models need max_loss", "max_loss: 2%", at_key=True)
    for section, key in UNREAD:
        if getattr(getattr(spec, section), key):
            yield Problem((section, key), "has no effect on language models", at_key=True)


def _model_problems(spec: CascadeSpec, model: ModelSpec, path: Path) -> Iterator[Problem]:
    for key in ("estimator", "tune", "features", "scale"):
        if getattr(model, key) is not None:
            yield Problem((*path, key), "nothing is fitted for language models", at_key=True)
    if spec.data.source == "endpoints":
        yield from _endpoint_problems(model, path)
        return
    columns = model.recorded
    if columns is None or columns.score is None:
        yield Problem(path, "the columns of its answers are missing", "recorded: {score: COLUMN, confidence: COLUMN}")
        return
    if columns.prediction is not None:
        yield Problem((*path, "recorded"), "give either prediction or score", "score: COLUMN")
    yield from _price_problems(model, columns, path)
    yield from _confidence_price_problems(spec, model, path)


def _price_problems(model: ModelSpec, columns: Recorded, path: Path) -> Iterator[Problem]:
    has_tokens = columns.tokens is not None
    if columns.price is None and model.price is None:
        yield Problem(path, "the price of one call is missing", "price: {in: 0.15, out: 0.60, per: 1M}")
    if columns.price is not None and model.price is not None and model.endpoint is None:
        yield Problem((*path, "price"), "recorded.price already names a column of prices", at_key=True)
    if isinstance(model.price, TokenPrice) and not has_tokens:
        yield Problem((*path, "recorded"), "a token price needs columns of tokens", "tokens: {in: COLUMN, out: COLUMN}")
    if model.price_of_confidence is not None and columns.price_of_confidence is not None:
        message = "recorded.price_of_confidence already names a column of prices"
        yield Problem((*path, "price_of_confidence"), message, at_key=True)


def price_of_confidence(spec: CascadeSpec, model: ModelSpec) -> float | TokenPrice | None:
    """Return the price of a confidence of a model: its own, or that of the call that obtains it; ``None`` if free."""
    source = spec.confidence or ConfidenceSource()
    if model.price_of_confidence is not None:
        return model.price_of_confidence
    if source.source == "judge":
        return next((each.price for each in spec.stages[0].models if each.name == source.model), None)
    # a price per call covers all samples of a vote
    is_priced = source.source == "check" or (source.source == "votes" and isinstance(model.price, TokenPrice))
    return model.price if is_priced else None


def _confidence_price_problems(spec: CascadeSpec, model: ModelSpec, path: Path) -> Iterator[Problem]:
    """Yield that the calls which obtain a recorded confidence, and which the gateway pays, have no price."""
    columns, confidence = model.recorded, spec.confidence or ConfidenceSource()
    source, names = confidence.source, [each.name for each in spec.stages[0].models]
    if columns is None or columns.confidence is None or columns.price_of_confidence is not None:
        return
    if source == "judge" and confidence.model not in names:
        return
    price = price_of_confidence(spec, model)
    if isinstance(price, TokenPrice) and price is not model.price and columns.tokens is None:
        yield Problem((*path, "recorded"), "a token price needs columns of tokens", "tokens: {in: COLUMN, out: COLUMN}")
    if price is None and (source in ("check", "judge") or (source == "votes" and model.price is None)):
        hint = "price_of_confidence: 0.0002, or recorded: {price_of_confidence: COLUMN}"
        yield Problem(path, f"the further calls of from: {source} have no price", hint)


def _endpoint_problems(model: ModelSpec, path: Path) -> Iterator[Problem]:
    if model.endpoint is None:
        yield Problem(path, "the endpoint is missing", "endpoint: {url: http://127.0.0.1:8080/v1, model: NAME}")
    if model.price is None:
        yield Problem(path, "the price of one call is missing", "price: {in: 0.15, out: 0.60, per: 1M}")
    if model.recorded is not None:
        yield Problem((*path, "recorded"), "applies to data: {source: recorded} only", at_key=True)


def _latency_problems(spec: CascadeSpec) -> Iterator[Problem]:
    limit, source = spec.goal.max_latency, (spec.confidence or ConfidenceSource()).source
    if limit is None:
        return
    if len(limit.model_dump(exclude_none=True)) != 1:
        yield Problem(("goal", "max_latency"), "give one quantile", "max_latency: {p95: 2 s}")
    for m, model in enumerate(spec.stages[0].models):
        if model.recorded is not None and model.recorded.latency is None:
            hint = "latency: COLUMN, in milliseconds"
            yield Problem(("stages", 0, "models", m, "recorded"), "max_latency needs its latency", hint)
        if source in ("check", "judge") and model.recorded is not None and _lacks_duration(model.recorded):
            message = f"max_latency needs the duration of the {source}"
            yield Problem(("stages", 0, "models", m, "recorded"), message, "confidence_latency: COLUMN, in ms")


def _lacks_duration(columns: Recorded) -> bool:
    return columns.confidence is not None and columns.confidence_latency is None


def _serving_problems(spec: CascadeSpec, names: list[str]) -> Iterator[Problem]:
    if spec.serve is not None:
        if spec.serve.alias in names:
            yield Problem(("serve", "alias"), f'"{spec.serve.alias}" is already the name of a model', "alias: auto")
        if spec.serve.sticky == "conversation" and spec.data.source == "recorded" and spec.group is None:
            hint = "data.group: COLUMN names the conversation of each row"
            yield Problem(("serve", "sticky"), "needs a certificate by conversation", hint)
        keys = [key.name for key in spec.serve.keys]
        if len(set(keys)) < len(keys):
            yield Problem(("serve", "keys"), "two keys have the same name")
        for index, key in enumerate(spec.serve.keys):
            if key.per is not None and key.budget is None:
                yield Problem(("serve", "keys", index, "per"), "has no effect without a budget", "write budget: 50")
    if spec.collect is not None:
        yield from _scoring_problems(spec, names)
    yield from _confidence_problems(spec, names)
    if spec.entry is not None and getattr(spec.data, "prompt", None) is None:
        yield Problem(("entry",), "needs the prompts of the log", "data.prompt: COLUMN", at_key=True)


def _confidence_problems(spec: CascadeSpec, names: list[str]) -> Iterator[Problem]:
    source = spec.confidence or ConfidenceSource()
    if source.prompt is not None and source.source not in ("check", "judge"):
        yield Problem(("confidence", "prompt"), "applies to from: check and from: judge only", at_key=True)
    if source.prompt is not None and "{answer}" not in source.prompt:
        yield Problem(("confidence", "prompt"), "does not show the answer", '"... {prompt} ... {answer} ..."')
    if source.source == "judge" and source.model is None:
        yield Problem(("confidence",), "from: judge needs a model", f"model: {names[-1]}")
    if source.model is not None and source.source != "judge":
        yield Problem(("confidence", "model"), "applies to from: judge only", at_key=True)
    elif source.model is not None and source.model not in names:
        yield Problem(("confidence", "model"), "no such model in the stage", ", ".join(names))
    if source.source == "column" and spec.data.source == "endpoints":
        yield Problem(("confidence", "from"), "a column is read from a log only", "from: logprob")
    for m, model in enumerate(spec.stages[0].models):
        if model.recorded is not None:
            yield from _vote_problems(source, model.recorded, ("stages", 0, "models", m, "recorded"))


def _vote_problems(source: ConfidenceSource, columns: Recorded, path: Path) -> Iterator[Problem]:
    if source.source == "votes":
        if columns.gated_score is None:
            hint = "gated_score: COLUMN, and score: that of one sample"
            yield Problem(path, "votes need to know whether the answer of the majority was right", hint)
        return
    for key in ("gated_score", "gated_answer"):
        if getattr(columns, key) is not None:
            yield Problem((*path, key), "applies to confidence: {from: votes} only", at_key=True)


def _scoring_problems(spec: CascadeSpec, names: list[str]) -> Iterator[Problem]:
    score = spec.collect.score if spec.collect is not None else None
    if score is None:
        return
    for by, key in (("regex", "pattern"), ("function", "function"), ("judge", "model")):
        if score.by == by and getattr(score, key) is None:
            yield Problem(("collect", "score"), f"by: {by} needs {key}", f"{key}: ...")
    if score.model is not None and score.model not in names:
        yield Problem(("collect", "score", "model"), "no such model in the stage", ", ".join(names))
    expects = score.by in ("exact", "number", "choice", "regex")
    if expects and spec.data.source == "endpoints" and spec.data.expected is None:
        yield Problem(("data",), f"scoring by {score.by} needs the expected answers", "expected: COLUMN")
