"""Resolve a spec of language models: the only module of this package which reads specs."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.data.case_order import is_sorted_by_words, rank_by_time
from unfold_cascade.data.dataset import require_groups
from unfold_cascade.data.leakage import Copies, find_copies, is_oracle, join_groups
from unfold_cascade.data.table import Frame, TableSource, load_frame
from unfold_cascade.language_models.collection.profiler import CollectionTask
from unfold_cascade.language_models.collection.scoring import (
    Score,
    build_pattern_score,
    is_exact,
    is_same_choice,
    is_same_number,
    load_function,
)
from unfold_cascade.language_models.gateway.loader import (
    check_keys,
    read_entry,
    read_promise,
    read_route,
    read_secret,
)
from unfold_cascade.language_models.gateway.plan import (
    CHECK_PROMPT,
    ClientKey,
    ConfidenceMethod,
    GatewayPlan,
    ServedModel,
    UpstreamLimits,
)
from unfold_cascade.language_models.openai_api.completion import ROUNDING
from unfold_cascade.language_models.planning.calibration import Scale
from unfold_cascade.language_models.planning.call_log import CallLog
from unfold_cascade.language_models.planning.certificate import Limits
from unfold_cascade.language_models.planning.planner import RoutingSolution
from unfold_cascade.language_models.planning.prices import TokenPrices
from unfold_cascade.language_models.planning.problem import (
    MIN_TUNING_UNITS,
    SMALL_CHAIN,
    SMALL_LOG,
    RoutingProblem,
    split_units,
)
from unfold_cascade.language_models.planning.prompt_features import build_prompt_reader, join_scripts
from unfold_cascade.language_models.report.exports import ExportedModel, export_litellm, export_semantic_router
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.schema.language_model_rules import price_of_confidence
from unfold_cascade.schema.language_models import (
    QUANTILE_SHARES,
    Collection,
    ConfidenceSource,
    GatewaySpec,
    Scoring,
    TokenPrice,
)
from unfold_cascade.schema.spec_sections import ModelSpec, Recorded
from unfold_cascade.schema.splits import LOG_SPLIT, Split
from unfoldkit.api import Run, fingerprint, user_error
from unfoldkit.arrivals.readers.timestamps import split_unit

PREPARED_LOG = "calls/log.csv"
"""The log that ``profile`` leaves in the run."""
PROMPT_NAMES = frozenset({"prompt", "prompts", "question", "query", "input", "messages", "instruction", "user_prompt"})
"""Names of columns of prompts, in lower case and without what they are nested in."""
_LETTER = re.compile(r"[^\W\d_]")
_VERSION = re.compile(r"[-@]\d{4}-?\d{2}-?\d{2}$")
FAR_BELOW = 100.0
"""How many times longer than every call of a log a deadline is that only a wrong unit explains."""
TOKEN_KEYS: Mapping[str, str] = {"input": "in"}
"""Keys of a spec by the field of ``Tokens``, where they differ."""
LAYOUT_HINT = (
    "write one row per request, with a score and a confidence of each model, such as small_score and large_score: "
    "docs/how-to/tune-gates-from-api-logs.md"
)
_REQUEST_ID = re.compile(r"(^|[^a-z])(id|prompt|question|query|request|instruction)$", re.IGNORECASE)
MAX_REQUEST_SHARE = 0.7
"""Fewer different requests than this share of the rows, each with several models, are calls of those models."""
SPLIT_HINT = "split: {train: 25%, calibrate: 60%, test: 15%}"


def build_routing_problem(spec: CascadeSpec, run: Run) -> RoutingProblem:
    """Resolve a spec of language models and read its log.

    Raises:
        UnfoldError: The log is missing, or a column of it is not as the spec says.
    """
    frame = load_log_frame(spec, run)
    log, prompts = read_call_log(spec, frame)
    rows = _find_answered_rows(spec, log)
    unanswered = len(log) - len(rows)
    if unanswered:
        frame = replace(frame, columns={name: values[rows] for name, values in frame.columns.items()})
        log, prompts = log.take(rows), None if prompts is None else [prompts[row] for row in rows]
    # where prompts are known, they distinguish requests, and equal ones are one unit
    repeated = _find_repeated_prompts(spec, frame)
    if repeated:
        by_prompt = join_units(None, frame.long_texts(repeated, key="data"), len(frame))
        log = replace(log, unit=join_groups(log.unit, by_prompt))
    copies = _find_copies(spec, frame, log) if prompts is None and not repeated else None
    if copies is not None:
        log = replace(log, unit=join_groups(log.unit, copies.unit))
    reader = None if spec.entry is None or prompts is None else build_prompt_reader(spec.entry.features)
    if reader is not None and prompts is not None:
        log = replace(log, features=reader.read(prompts))
    split = spec.data.split
    if not isinstance(split, Split):
        raise user_error("a log of language models is split at random, by shares", key="data.split", hint=SPLIT_HINT)
    is_default = "split" not in spec.data.model_fields_set
    shares = LOG_SPLIT if is_default else split
    parts = split_units(
        log.unit,
        shares.train,
        shares.calibrate,
        run.seed,
        min_tuning=MIN_TUNING_UNITS if is_default else 0,
    )
    quantile, deadline_ms, late_share = _read_latency_limit(spec)
    is_small = len(log) < SMALL_LOG
    return RoutingProblem(
        name=spec.name,
        log=log,
        source=frame.name,
        digest=frame.digest,
        parts=parts,
        rank=_rank_requests(frame),
        max_models=SMALL_CHAIN
        if is_small and "max_models" not in spec.gates.model_fields_set
        else spec.gates.max_models,
        order=spec.gates.order or "sorted",
        limits=Limits(
            max_loss=spec.goal.max_loss or 0.0,
            delta=1.0 - spec.goal.confidence,
            test=spec.goal.test,
            deadline_ms=deadline_ms,
            late_share=late_share,
        ),
        quantile=quantile,
        scale=_confidence_scale(spec),
        unit_name="prompt" if repeated else _unit_name(spec, has_copies=copies is not None),
        repeated_prompts=repeated,
        unanswered=unanswered,
        longest_prompt=None if prompts is None else max(map(len, prompts)),
        scripts=() if prompts is None else join_scripts(prompts),
        embedding="" if reader is None else reader.embedding,
        confidence=describe_confidence(spec),
        goal=spec.goal.model_dump(mode="json", exclude_none=True),
        copies=copies,
        leaks=_find_leaks(spec, log),
        is_servable=all(model.endpoint for model in spec.stages[0].models)
        and (spec.confidence is None or spec.confidence.source != "column"),
    )


def _find_copies(spec: CascadeSpec, frame: Frame, log: CallLog) -> Copies | None:
    """Find the rows that repeat others in all that the models returned; how long a call took is no difference."""
    if getattr(spec.data, "duplicates", None) == "keep":
        return None
    recorded = [model.recorded for model in spec.stages[0].models if model.recorded is not None]
    columns = dict.fromkeys(column for each in recorded for column in (each.answer, each.gated_answer) if column)
    words = [_number_texts(frame.long_texts(column, key="data.path")).astype(np.str_) for column in columns]
    numbers = np.column_stack([log.confidence, log.is_correct, log.cost, log.confidence_cost])
    return find_copies(np.where(np.isfinite(numbers), numbers, np.nan), words, finds_noisy=False)


def _rank_requests(frame: Frame) -> IntArray | None:
    """Rank (n,) the requests in time; ``None`` where their order says nothing about it."""
    rank = rank_by_time(frame)
    return np.arange(len(frame)) if rank is None and not is_sorted_by_words(frame) else rank


def _find_answered_rows(spec: CascadeSpec, log: CallLog) -> IntArray:
    """List the rows of a recorded log in which some model answered; others are failed attempts, and dilute the loss."""
    rows = np.arange(len(log)) if log.is_answered is None else np.flatnonzero(log.is_answered.any(axis=1))
    return rows if spec.data.source == "recorded" and len(rows) else np.arange(len(log))


def _find_repeated_prompts(spec: CascadeSpec, frame: Frame) -> str:
    """Find a column of prompts that repeat, where the spec names none; empty if there is none.

    Samples of one prompt differ in their answers, so that rows under distinct ids are no copies.
    """
    data = spec.data
    if data.source == "endpoints" or getattr(data, "duplicates", None) == "keep" or getattr(data, "prompt", None):
        return ""
    recorded = [model.recorded for model in spec.stages[0].models if model.recorded is not None]
    used = {spec.group, *(column for each in recorded for column in (each.answer, each.gated_answer))}
    prompts = dict[str, int]()
    for name in frame.columns:
        if re.split(r"[./|]", name.casefold())[-1] in PROMPT_NAMES and name not in used:
            texts = frame.long_texts(name, key="data")
            # a column without a letter holds counts of tokens or of messages
            if any(map(_LETTER.search, texts)):
                prompts[name] = int(join_units(None, texts, len(frame)).max(initial=-1)) + 1
    # beside the inputs, a template repeats; one prompt alone is a template too
    name = max(prompts, key=lambda name: prompts[name], default="")
    return name if 1 < prompts.get(name, 0) < len(frame) else ""


def _find_leaks(spec: CascadeSpec, log: CallLog) -> tuple[str, ...]:
    """List the columns of confidences that have seen whether the answer is right, but for trusted ones."""
    trusted = getattr(spec.data, "trusted", None) or ()
    columns = [model.recorded and model.recorded.confidence for model in spec.stages[0].models]
    judged = np.ones(len(log), dtype=np.bool_) if log.is_unlabelled is None else ~log.is_unlabelled.any(axis=1)
    return tuple(
        column
        for m, column in enumerate(columns)
        if column and column not in trusted and is_oracle(log.confidence[judged, m], log.trusted_correct[judged, m])
    )


def load_log_frame(spec: CascadeSpec, run: Run) -> Frame:
    """Load the log: the table of the spec, or what ``profile`` left in the run.

    Raises:
        UnfoldError: There is none.
    """
    data = spec.data
    if data.source == "endpoints":
        path = run.directory.path / PREPARED_LOG
        if not path.exists():
            raise user_error("the run has no log of calls", key="data", hint="run unfold profile SPEC first")
        return load_frame(TableSource(path=str(path), locate=lambda: path))
    if data.source != "recorded":
        raise user_error("language models need a log of calls", key="data.source")
    path_text = data.path
    return load_frame(TableSource(path=path_text, locate=lambda: run.path(path_text, key="data.path")))


def read_call_log(spec: CascadeSpec, frame: Frame) -> tuple[CallLog, list[str] | None]:
    """Read the log of a spec, and its prompts if it has any.

    Raises:
        UnfoldError: A column is missing or no number, or a price is missing.
    """
    models = spec.stages[0].models
    source = spec.confidence or ConfidenceSource()
    columns = [_profile_columns(model, source) if model.recorded is None else model.recorded for model in models]
    keys = [f"stages[0].models[{m}].recorded" for m in range(len(models))]
    pairs = list(zip(columns, keys, strict=True))
    _check_layout(frame, models, columns)
    scores = np.column_stack([frame.judgements(c.score or "", c.right_from, key=f"{key}.score") for c, key in pairs])
    is_missing = np.isnan(scores)
    scale = _confidence_scale(spec)
    confidence = np.column_stack([_read_confidence(frame, c, scale, key) for c, key in pairs])
    answer, gated_answer, has_text = _read_answers(frame, columns, keys)
    is_answered = _find_answered(frame, columns, confidence) if has_text is None else has_text
    cost = np.column_stack(
        [
            _read_cost(frame, model, c, key, is_missing[:, m] & ~is_answered[:, m])
            for m, (model, (c, key)) in enumerate(zip(models, pairs, strict=True))
        ]
    )
    is_unlabelled = is_missing & is_answered
    prompts = _read_prompts(spec, frame)
    group_column = "group" if spec.group and spec.data.source == "endpoints" else spec.group
    groups = frame.text(group_column, key="data.group") if group_column else None
    if groups is not None:
        require_groups(spec.group or "", groups)
    is_sticky = spec.serve is not None and spec.serve.sticky == "conversation" and groups is not None
    unit = join_units(groups, prompts, len(frame))
    rank = rank_by_time(frame) if is_sticky else None
    log = CallLog(
        models=tuple(model.name for model in models),
        is_correct=scores == 1.0,
        confidence=confidence,
        cost=cost,
        confidence_cost=np.column_stack(
            [_read_confidence_cost(frame, spec, model, c, key) for model, (c, key) in zip(models, pairs, strict=True)]
        ),
        latency_ms=np.column_stack([_read_latency(frame, c, key) for c, key in pairs]),
        unit=unit,
        turn=(np.arange(len(frame)) if rank is None else rank) if is_sticky else None,
        conversation=join_units(groups, None, len(frame)) if is_sticky else None,
        answer=answer,
        is_answered=is_answered | ~is_missing,
        is_unlabelled=is_unlabelled if is_unlabelled.any() else None,
        confidence_latency_ms=_read_confidence_latency(frame, columns, keys),
        is_gated_correct=_read_gated_scores(frame, columns, keys),
        gated_answer=gated_answer,
    )
    _check_latency(log.latency_ms, _read_latency_limit(spec)[1], frame.name)
    return log, prompts


def _check_latency(latency_ms: FloatArray, deadline_ms: float | None, table: str) -> None:
    """Check that a deadline can be certified.

    Raises:
        UnfoldError: A latency is missing, or all are so small that they must be seconds.
    """
    if deadline_ms is None:
        return
    rows = np.flatnonzero(~np.isfinite(latency_ms).all(axis=1))
    if len(rows):
        raise user_error(f"{table}: row {rows[0] + 1} has no latency, which goal.max_latency needs", key="goal")
    longest_ms = float(latency_ms.max())
    if longest_ms * FAR_BELOW < deadline_ms:
        message = f"{table}: no call takes longer than {longest_ms:.3g} ms, far below {deadline_ms:,.0f} ms"
        hint = "latencies are read in ms: if these are seconds, end the name of the column in _s"
        raise user_error(message, key="goal.max_latency", hint=hint)


def _check_layout(frame: Frame, models: Sequence[ModelSpec], columns: Sequence[Recorded]) -> None:
    """Check that a row holds the answers of all models; gateways, tracing tools and arenas export other rows.

    Raises:
        UnfoldError: A column names the models instead, a row compares two models, or no column is of a model.
    """
    if {"model_a", "model_b"} <= {name.casefold() for name in frame.columns}:
        message = f"{frame.name} compares two models in each row, so it does not say which answers are right"
        raise user_error(message, key="data.path", hint=LAYOUT_HINT)
    names = {name for model in models for name in (model.name, model.endpoint and model.endpoint.model) if name}
    has_scores = any(column.score in frame.columns for column in columns)
    for column, values in frame.columns.items():
        if not names & {form for value in {str(value) for value in values.tolist()} for form in _list_names(value)}:
            continue
        # beside scores of every model, a column may name the one that served the request
        if not has_scores or _find_repeated_request(frame, column):
            message = f'{frame.name} has one row per call: its column "{column}" names the models'
            raise user_error(message, key="data.path", hint=LAYOUT_HINT)
    if not has_scores and not any(column.confidence in frame.columns for column in columns):
        message = f"{frame.name} has neither a score nor a confidence of any model of the spec"
        raise user_error(message, key="data.path", hint=LAYOUT_HINT)


def _find_repeated_request(frame: Frame, column: str) -> str:
    """Find a column of requests that each occur once with each of several values of ``column``; empty if none does."""
    models = frame.text(column, key="data.path")
    for name in frame.columns:
        if name != column and _REQUEST_ID.search(name) is not None:
            requests = frame.long_texts(name, key="data.path")
            pairs = len(set(zip(requests, models.tolist(), strict=True)))
            if pairs == len(frame) and len(set(requests)) <= MAX_REQUEST_SHARE * len(frame):
                return name
    return ""


def _list_names(model: str) -> tuple[str, ...]:
    """List the names of a model: as it is, without its provider, and without the date of its version."""
    name = model.rsplit("/", 1)[-1]
    return model, name, _VERSION.sub("", name)


def join_units(groups: np.ndarray | None, prompts: Sequence[str] | None, rows: int) -> IntArray:
    """Number the independent units: rows which share a group or a prompt, directly or through others, are one.

    Args:
        groups: (n,) text of the group of each row; an empty text is a group of its own.
        prompts: (n,) prompts; equal after removing white space and case at the ends counts as the same.
        rows: n.
    """
    parent = list(range(rows))

    def find_root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for texts in (groups, prompts):
        seen: dict[str, int] = {}
        for row, text in enumerate(texts if texts is not None else ()):
            key = " ".join(str(text).split()).casefold()
            if key:
                parent[find_root(row)] = find_root(seen.setdefault(key, row))
    _, unit = np.unique([find_root(row) for row in range(rows)], return_inverse=True)
    return unit.astype(np.int64)


def token_prices(price: float | TokenPrice | None) -> TokenPrices:
    """Resolve a price of the spec to dollars per token."""
    if price is None:
        return TokenPrices()
    if not isinstance(price, TokenPrice):
        return TokenPrices(fixed=price)
    cached, written = (price.input if value is None else value for value in (price.cached, price.written))
    per = price.per
    return TokenPrices(
        input=price.input / per, cached=cached / per, written=written / per, output=price.out / per, fixed=price.fixed
    )


def describe_confidence(spec: CascadeSpec) -> dict[str, Any]:
    """Describe the source of confidences, with a hash of its prompt; another description voids a promise."""
    source = spec.confidence or ConfidenceSource()
    document = source.model_dump(mode="json", exclude_none=True, by_alias=True)
    document.pop("prompt", None)
    if source.source == "votes":
        document["answer"] = "majority"
    if source.source in ("check", "judge"):
        document["prompt_sha256"] = hashlib.sha256((source.prompt or CHECK_PROMPT).encode()).hexdigest()
    if source.source == "judge":
        judge = next(model for model in spec.stages[0].models if model.name == source.model)
        document["judge"] = judge.name if judge.endpoint is None else f"{judge.name} ({judge.endpoint.model})"
    return document


def build_gateway_plan(spec: CascadeSpec, plan: Mapping[str, Any]) -> GatewayPlan:
    """Resolve the stored plan of a run, and the endpoints and keys of the spec, for serving.

    Raises:
        UnfoldError: There is no plan, it is not of this spec, an endpoint is missing, or a key is not set.
    """
    decision, serve = plan.get("decision"), spec.serve or GatewaySpec()
    if not isinstance(decision, Mapping) or not decision.get("chain"):
        raise user_error("the run has no plan for language models", hint="run unfold plan SPEC first")
    source = spec.confidence or ConfidenceSource()
    if decision.get("confidence") != describe_confidence(spec):
        message = "the confidence of the spec is not that of the plan, which voids its promise"
        raise user_error(message, key="confidence", hint="unfold plan SPEC again")
    if source.source == "column" and len(decision["chain"]) > 1:
        message = "the gateway cannot obtain the confidences which the column of the log holds"
        raise user_error(message, key="confidence.from", hint="from: logprob, votes, check or judge")
    models = {model.name: _build_served_model(model, m) for m, model in enumerate(spec.stages[0].models)}
    chain, gates = read_route(decision, models)
    timeouts = serve.timeouts
    keys = tuple(
        ClientKey(
            name=key.name,
            key=read_secret(key.key_env, f"serve.keys[{k}].key_env"),
            budget_usd=key.budget,
            period=key.per,
        )
        for k, key in enumerate(serve.keys)
    )
    check_keys(keys)
    return GatewayPlan(
        name=spec.name,
        alias=serve.alias,
        models=models,
        chain=chain,
        gates=gates,
        reference=str(decision["reference"]),
        promise=read_promise(decision, audits_labels=serve.judge == "labels"),
        plan_hash=fingerprint(decision)[:12],
        longest_prompt=decision.get("longest_prompt"),
        scripts=frozenset(map(str, decision.get("scripts") or ())),
        largest_cost_usd=float((decision.get("expected") or {}).get("largest_cost_usd") or 0.0),
        method=_build_method(source, models),
        entry=read_entry(decision),
        sticky=serve.sticky == "conversation",
        trusts_filtered=serve.content_filter == "trust",
        audit_share=serve.audit,
        audits_labels=serve.judge == "labels",
        is_probed=serve.probe,
        limits=UpstreamLimits(
            connect_s=timeouts.connect,
            first_token_s=timeouts.first_token,
            between_tokens_s=timeouts.between_tokens,
            total_s=timeouts.total,
            retries=serve.retries,
            answer_bytes=serve.answer_limit,
        ),
        body_bytes=serve.body_limit,
        keys=keys,
    )


def build_collection(spec: CascadeSpec, run: Run) -> tuple[CollectionTask, str]:
    """Resolve what ``profile`` collects, with the identity of prompts, models and settings.

    Raises:
        UnfoldError: The prompts are missing, a key is not set, or the score is not as the spec says.
    """
    data = spec.data
    if data.source != "endpoints":
        raise user_error("recorded models cannot be measured: the spec has their prices", key="data.source")
    frame = load_frame(TableSource(path=data.prompts, locate=lambda: run.path(data.prompts, key="data.prompts")))
    options, source = spec.collect or Collection(), spec.confidence or ConfidenceSource()
    models = tuple(_build_served_model(model, m) for m, model in enumerate(spec.stages[0].models))
    judge = options.score.model if options.score.by == "judge" else None
    task = CollectionTask(
        prompts=tuple(frame.long_texts(data.prompt, key="data.prompt")),
        expected=tuple(frame.long_texts(data.expected, key="data.expected")) if data.expected else (),
        groups=tuple(map(str, frame.text(data.group, key="data.group"))) if data.group else (),
        models=models,
        rates=tuple(None if m.endpoint is None else m.endpoint.rate for m in spec.stages[0].models),
        cap_usd=options.cap,
        concurrency=options.concurrency,
        max_tokens=options.max_tokens,
        system=options.system or "",
        method=_build_method(source, {model.name: model for model in models}),
        score=_build_score(options.score, run),
        judge=next((model for model in models if model.name == judge), None),
    )
    settings = options.model_dump(mode="json", exclude={"cap", "concurrency", "retries"})
    names = [[model.name, model.url, model.upstream_model] for model in models]
    return task, fingerprint(frame.digest, data.prompt, names, settings, describe_confidence(spec))


def list_exports(spec: CascadeSpec, solution: RoutingSolution) -> Iterator[tuple[str, str]]:
    """Yield file names and texts of the certified route for other gateways; nothing if a model has no endpoint."""
    models = {}
    for model in spec.stages[0].models:
        if model.endpoint is None:
            return
        prices, endpoint = token_prices(model.price), model.endpoint
        models[model.name] = ExportedModel(
            name=model.name,
            url=endpoint.url,
            upstream_model=endpoint.model,
            key_env=endpoint.key_env,
            input_usd=prices.input,
            output_usd=prices.output,
        )
    route, names = solution.served_route, solution.problem.log.models
    chain, alias = tuple(names[m] for m in route.chain), (spec.serve or GatewaySpec()).alias
    yield "litellm.yaml", export_litellm(alias, chain, models)
    calibrations = dict(zip(names, solution.calibrations, strict=True))
    text = export_semantic_router(alias, chain, route.cuts, calibrations)
    source = spec.confidence or ConfidenceSource()
    if text is not None and (source.source, source.of) == ("logprob", "mean"):
        yield "semantic-router.yaml", text


def _build_score(scoring: Scoring, run: Run) -> Score:
    if scoring.by == "regex":
        return build_pattern_score(scoring.pattern or "")
    if scoring.by == "function":
        return load_function(scoring.function or "", allow_code=run.allow_code)
    if scoring.by == "number":
        return partial(is_same_number, tolerance=scoring.tolerance)
    return is_same_choice if scoring.by == "choice" else is_exact


def _build_served_model(model: ModelSpec, m: int) -> ServedModel:
    path, endpoint = f"stages[0].models[{m}]", model.endpoint
    if endpoint is None:
        hint = "endpoint: {url: https://host/v1, model: NAME, key_env: VARIABLE}"
        raise user_error(f"{model.name} has no endpoint, so it cannot be served", key=path, hint=hint)
    if model.price is None:
        raise user_error(
            f"{model.name} has no price, which budgets and costs need", key=path, hint="price: {in: 0.15, out: 0.6}"
        )
    return ServedModel(
        name=model.name,
        url=endpoint.url,
        upstream_model=endpoint.model,
        key=read_secret(endpoint.key_env, f"{path}.endpoint.key_env"),
        prices=token_prices(model.price),
        confidence_prices=None if model.price_of_confidence is None else token_prices(model.price_of_confidence),
        window=endpoint.window,
        max_tokens=endpoint.max_tokens,
        http2=endpoint.http2,
    )


def _build_method(source: ConfidenceSource, models: Mapping[str, ServedModel]) -> ConfidenceMethod:
    """Resolve how confidences are obtained; a column of a log has no gate to serve."""
    return ConfidenceMethod(
        source="logprob" if source.source == "column" else source.source,
        of=source.of,
        samples=source.samples,
        prompt=source.prompt or CHECK_PROMPT,
        judge=models[source.model] if source.source == "judge" and source.model is not None else None,
    )


def _profile_columns(model: ModelSpec, source: ConfidenceSource) -> Recorded:
    """Name the columns that ``profile`` writes for a model."""
    gated = {"gated_score": f"{model.name}|gated_correct", "gated_answer": f"{model.name}|gated_answer"}
    return Recorded.model_validate(
        {
            **(gated if source.source == "votes" else {}),
            "confidence_latency": f"{model.name}|confidence_latency_ms",
            "score": f"{model.name}|correct",
            "confidence": f"{model.name}|confidence",
            "price": f"{model.name}|cost_usd",
            "price_of_confidence": f"{model.name}|confidence_cost_usd",
            "latency": f"{model.name}|latency_ms",
            "answer": f"{model.name}|answer",
        }
    )


def _read_confidence(frame: Frame, columns: Recorded, scale: Scale | None, key: str) -> FloatArray:
    """Read (n,) confidences; ``-inf`` is a log-probability of an impossible answer, never sure.

    Raises:
        UnfoldError: There is no such column, or its values have another scale than the source of the spec.
    """
    if columns.confidence is None:
        return np.full(len(frame), np.nan)
    key = f"{key}.confidence"
    if columns.confidence not in frame.columns:
        return frame.numbers(columns.confidence, key=key)
    cells = frame.columns[columns.confidence]
    if cells.dtype.kind in "fiub":
        confidence = np.where(np.isfinite(cells.astype(np.float64)), cells.astype(np.float64), np.nan)
    else:
        is_infinite = np.array([str(cell).strip().lower() in ("-inf", "-infinity") for cell in cells])
        cleaned = np.where(is_infinite, "", cells).astype(object)
        confidence = Frame({columns.confidence: cleaned}, frame.digest, frame.name).numbers(columns.confidence, key=key)
    _check_scale(confidence, scale, f'{frame.name}: row {{}} of column "{columns.confidence}"', key)
    return confidence


def _check_scale(confidence: FloatArray, scale: Scale | None, place: str, key: str) -> None:
    """Check that confidences can be what the spec says; they would all be cut to the same value otherwise.

    Raises:
        UnfoldError: A log-probability is positive, or a probability outside 0 to 1.
    """
    invalid = np.zeros(len(confidence), dtype=np.bool_)
    kind, hint = "log-probability", "for probabilities or other scores: confidence: {from: column}"
    if scale == "logprob":
        invalid = confidence > ROUNDING
    elif scale == "probability":
        kind, hint = "probability", "for other scores: confidence: {from: column}"
        invalid = (confidence > 1.0 + ROUNDING) | (confidence < -ROUNDING)
    if invalid.any():
        row = int(np.flatnonzero(invalid)[0])
        raise user_error(f"{place.format(row + 1)} holds {confidence[row]:g}, which is no {kind}", key=key, hint=hint)


def _find_answered(frame: Frame, columns: Sequence[Recorded], confidence: FloatArray) -> BoolArray:
    """Mark (n, M) the calls that gave an answer, where no texts are recorded: by confidence, output tokens or price."""

    def is_positive(column: str | None) -> BoolArray:
        # cells that are no numbers are reported where costs are read
        if column is None or column not in frame.columns:
            return np.zeros(len(frame), dtype=np.bool_)
        return np.asarray(frame.numbers(column, key="stages[0].models") > 0.0, dtype=np.bool_)

    evidence = [c.price if c.tokens is None else c.tokens.out for c in columns]
    return np.isfinite(confidence) | np.column_stack([is_positive(column) for column in evidence])


def _read_cost(frame: Frame, model: ModelSpec, columns: Recorded, key: str, may_be_empty: BoolArray) -> FloatArray:
    """Read (n,) costs of calls; those that ``may_be_empty`` marks failed, and may have no count or price.

    Raises:
        UnfoldError: A count or price is missing, or a row counts more cached tokens than input tokens.
    """
    if columns.price is not None:
        return frame.prices(columns.price, may_be_empty, key=f"{key}.price")
    prices = token_prices(model.price)
    if columns.tokens is None:
        return np.full(len(frame), prices.fixed)
    tokens = columns.tokens
    counts = {
        name: _read_tokens(frame, getattr(tokens, name), f"{key}.tokens.{TOKEN_KEYS.get(name, name)}", may_be_empty)
        for name in ("input", "out", "cached", "written")
    }
    excess = np.flatnonzero(counts["cached"] + counts["written"] > counts["input"])
    if len(excess):
        row = int(excess[0])
        cached = counts["cached"][row] + counts["written"][row]
        place = f'{frame.name}: row {row + 1} of column "{tokens.input}"'
        message = f"{place} has {counts['input'][row]:,.0f} input tokens, but {cached:,.0f} cached ones"
        hint = "in includes cached and written tokens, as OpenAI counts; where a log counts them apart, add them"
        raise user_error(message, key=f"{key}.tokens", hint=hint)
    return prices.costs(counts["input"], counts["out"], counts["cached"], counts["written"])


def _read_confidence_cost(frame: Frame, spec: CascadeSpec, model: ModelSpec, columns: Recorded, key: str) -> FloatArray:
    """Read (n,) costs of confidences; without a price of their own they follow from the tokens of the answer."""
    may_be_empty = np.ones(len(frame), dtype=np.bool_)
    if columns.price_of_confidence is not None:
        return frame.prices(columns.price_of_confidence, may_be_empty, key=f"{key}.price_of_confidence")
    source, price = spec.confidence or ConfidenceSource(), price_of_confidence(spec, model)
    prices = token_prices(price)
    if not isinstance(price, TokenPrice) or columns.tokens is None:
        return np.full(len(frame), prices.fixed)
    read = [
        _read_tokens(frame, column, f"{key}.tokens", may_be_empty)
        for column in (columns.tokens.input, columns.tokens.out)
    ]
    zero = np.zeros(len(frame))
    if source.source == "votes":
        # the other samples share the input of the first
        return prices.costs(zero, (source.samples - 1) * read[1], zero, zero) - prices.fixed
    # a check reads prompt and answer, and writes one token
    return prices.costs(read[0] + read[1], np.ones(len(frame)), zero, zero)


def _read_tokens(frame: Frame, column: str | None, key: str, may_be_empty: BoolArray) -> FloatArray:
    if column is None:
        return np.zeros(len(frame))
    tokens = frame.numbers(column, key=key)
    invalid = np.flatnonzero((tokens < 0) | (np.isnan(tokens) & ~may_be_empty))
    if len(invalid):
        message = f'{frame.name}: row {int(invalid[0]) + 1} of column "{column}" has no count of tokens'
        raise user_error(message, key=key, hint="unknown usage is not zero usage: remove the row, or fill in the count")
    return np.nan_to_num(tokens)


def _read_latency(frame: Frame, columns: Recorded, key: str) -> FloatArray:
    if columns.latency is None:
        return np.full(len(frame), np.nan)
    return _read_durations(frame, columns.latency, f"{key}.latency")


def _read_durations(frame: Frame, column: str, key: str) -> FloatArray:
    """Read (n,) durations in ms; a name such as ``latency_s`` states another unit."""
    unit_s = split_unit(column)[1]
    # latency_min is a minimum, not minutes
    factor = 1.0 if unit_s is None or unit_s > 1.0 else 1000.0 * unit_s
    return factor * frame.numbers(column, key=key)


def _read_gated_scores(frame: Frame, columns: list[Recorded], keys: list[str]) -> BoolArray | None:
    """Read whether the answers that gates trust are correct, if they are other ones; unknown counts as wrong."""
    if all(column.gated_score is None for column in columns):
        return None
    return np.column_stack(
        [
            frame.judgements(c.gated_score or c.score or "", c.right_from, key=f"{key}.gated_score") == 1.0
            for c, key in zip(columns, keys, strict=True)
        ]
    )


def _read_confidence_latency(frame: Frame, columns: list[Recorded], keys: list[str]) -> FloatArray | None:
    if all(column.confidence_latency is None for column in columns):
        return None
    return np.column_stack(
        [
            np.zeros(len(frame))
            if c.confidence_latency is None
            else np.nan_to_num(_read_durations(frame, c.confidence_latency, f"{key}.confidence_latency"))
            for c, key in zip(columns, keys, strict=True)
        ]
    )


def _read_answers(
    frame: Frame, columns: list[Recorded], keys: list[str]
) -> tuple[IntArray | None, IntArray | None, BoolArray | None]:
    """Number the texts of plain and of gated answers, and mark the calls that gave a text; ``None`` without texts."""
    if any(column.answer is None for column in columns):
        return None, None, None
    names = [c.answer or "" for c in columns]
    has_gated = any(column.gated_answer is not None for column in columns)
    if has_gated:
        names += [c.gated_answer or c.answer or "" for c in columns]
    texts = [
        [text.strip() for text in frame.long_texts(name, key=f"{key}.answer")]
        for name, key in zip(names, keys * (1 + has_gated), strict=True)
    ]
    numbers = _number_texts(list(itertools.chain(*texts))).reshape(len(texts), len(frame)).T
    count = len(columns)
    gated = numbers[:, count:] if has_gated else None
    return numbers[:, :count], gated, np.array([[text != "" for text in column] for column in texts[:count]]).T


def _number_texts(texts: Sequence[str]) -> IntArray:
    """Number (n,) texts from 0, alike where they are equal."""
    number = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    return np.array([number[text] for text in texts], dtype=np.int64)


def _read_prompts(spec: CascadeSpec, frame: Frame) -> list[str] | None:
    column = "prompt" if spec.data.source == "endpoints" else getattr(spec.data, "prompt", None)
    return None if column is None else frame.long_texts(column, key="data.prompt")


def _read_latency_limit(spec: CascadeSpec) -> tuple[str, float | None, float]:
    limit = spec.goal.max_latency
    if limit is None:
        return "", None, 0.05
    quantile, seconds = next(iter((name, value) for name, value in limit if value is not None))
    return quantile, 1000.0 * seconds, QUANTILE_SHARES[quantile]


def _confidence_scale(spec: CascadeSpec) -> Scale | None:
    source = spec.confidence
    if source is None or source.source == "column":
        return None
    return "logprob" if source.source == "logprob" else "probability"


def _unit_name(spec: CascadeSpec, *, has_copies: bool) -> str:
    if spec.group:
        return "conversation" if spec.serve is not None and spec.serve.sticky else spec.group
    if spec.data.source in ("recorded", "endpoints") and spec.data.prompt:
        return "prompt"
    return "distinct request" if has_copies else "request"
