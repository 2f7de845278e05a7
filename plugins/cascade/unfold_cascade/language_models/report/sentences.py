"""Every user-visible sentence about cascades of language models, as functions of plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unfold_cascade.report.sentences import leaked_label
from unfoldkit.api import format_amount, format_count, format_money

TESTS = {
    "exact": "exact paired test",
    "betting": "betting test, mixture of wagers",
    "binomial": "binomial test of the requests made worse",
}


def dollars(per_request: float) -> str:
    """Write a cost per request as dollars per 1,000 requests."""
    return f"${format_amount(1000 * per_request)} per 1,000 requests"


def percent(share: float) -> str:
    """Write a share as a percentage with three digits at most."""
    return f"{100 * share:.3g} %"


def points(loss: float) -> str:
    """Write a loss in points; one that rounds to zero has no sign."""
    value = round(100 * loss, 1) + 0.0
    return f"{value:.1f} point" if abs(value) == 1.0 else f"{value:.1f} points"


def limit(loss: float) -> str:
    """Write an allowed loss in points."""
    return f"{100 * loss:g} point" if loss == 0.01 else f"{100 * loss:g} points"


def question(reference: str, max_loss: float) -> str:
    """Ask what a plan answers."""
    return f"Is there a route that is cheaper than {reference} and loses at most {points(max_loss)}?"


def headline(saving: float, reference: str, cost: float, max_loss: float, confidence: float) -> str:
    """State what a certified route saves."""
    start = f"saves {percent(saving)} of the cost of {reference} alone ({dollars(cost)})"
    return f"{start}, and loses at most {limit(max_loss)} with {percent(confidence)} confidence"


def refusal(max_loss: float, confidence: float, reference: str, smallest: float | None) -> str:
    """State that no route is certified, and the smallest limit that these rows would have certified."""
    promise = f"to lose at most {limit(max_loss)} against {reference} with {percent(confidence)} confidence"
    start = f"no cheaper route is certified {promise}"
    if smallest is None:
        return start
    return f"{start}; the smallest limit that would pass on these rows is {limit(smallest)}"


def no_cheaper(reference: str) -> str:
    """State that the reference is already the cheapest."""
    return f"no route is cheaper than {reference} alone, which is also the most accurate model"


def costs_more(reference: str, share: float) -> str:
    """State that the route which keeps the limit costs no less than the reference."""
    cost = f"{percent(share)} more" if share else "as much"
    return f"no route is cheaper than {reference} alone: the certified one costs {cost} on rows not used to select it"


def late_break(reference: str, promise: str) -> str:
    """State that the last requests of the log break a promise which the earlier ones keep."""
    what = {"loss": "lose more than is allowed", "cost": f"cost more than with {reference} alone"}
    broken = what.get(promise, "take longer than is allowed too often")
    return (
        f"nothing is certified: the {promise} of the route grows along the log, so that its last requests {broken}; "
        "plan again on recent requests only, or shuffle the rows if they are not sorted by time"
    )


def leaked_confidence(columns: Sequence[str]) -> str:
    """State why nothing is certified: confidences that have seen the right answers."""
    return f"nothing is certified: {leaked_label(columns)}"


def certificate(test: str, units: int, unit: str, worse: int, better: int, p_value: float, bound: float | None) -> str:
    """Describe the certificate of the selected route."""
    name = "this" if test == "betting" else "the exact"
    tail = "" if bound is None else f"; by {name} test it loses less than {points(max(bound, 0.0))}"
    counts = f"{worse:,} made worse and {better:,} made better"
    return f"{TESTS[test]} on {units:,} {unit}s: {counts}, p = {p_value:.3f}{tail}"


def tested_chains(chains: Sequence[tuple[str, float]]) -> str:
    """State at which probability of a false promise each of two chains was tested, the selected one first."""
    (first, delta), (second, rest) = chains
    return f"{first} at an error of {percent(delta)}, {second} at {percent(rest)}: both hold jointly"


def unanswered_rows(count: int, table: str) -> str:
    """State that rows without any answer were skipped."""
    return f"skipped {format_count(count, 'row')} of {table} in which no model answered, as in failed attempts"


def failed_reference(model: str, failed: int, rows: int) -> str:
    """State that calls of the reference without an answer count as wrong, so that a route may lose that much more."""
    share = f"{100 * failed / rows:.2g} %"
    return (
        f"{model}, the reference, gave no answer to {failed:,} of {rows:,} requests ({share}), which count as wrong: "
        "if the service retries such calls, leave these rows out"
    )


def repeated_prompts(column: str, rows: int, units: int) -> str:
    """State that requests with one prompt count as one, though the spec names no column of prompts."""
    return (
        f'the {rows:,} rows count as {units:,}: prompts of the column "{column}" repeat (data.prompt: {column} says so;'
        " data.duplicates: keep counts every row)"
    )


def average_unit(unit: str) -> str:
    """State that the promise covers the average unit."""
    return f"the promise covers the average {unit}, however many requests each has"


def failed_certificate(test: str, units: int, unit: str, worse: int, better: int, p_value: float) -> str:
    """Describe the failed test of the first route."""
    counts = f"{worse:,} made worse and {better:,} made better, p = {p_value:.3f}"
    return f"{TESTS[test]} of the first route on {units:,} {unit}s: {counts}"


def units_needed(count: int | None, unit: str, units: int) -> str:
    """State how many certifying units would do."""
    if count is None:
        return f"the tuning rows show no saving within the limit, so more {unit}s alone would not help"
    if count <= units:
        return f"{units:,} {unit}s would suffice if they resembled the tuning rows; these do not"
    return f"about {count:,} certifying {unit}s are needed if they resemble the tuning rows; this log has {units:,}"


def refused_latency(late: int, units: int, quantile: str, deadline_ms: float, smallest_ms: float) -> str:
    """State that the latency limit is what fails, and the smallest one that would pass."""
    start = f"{late:,} of {units:,} are above the limit of {deadline_ms:,.0f} ms for {quantile}"
    if smallest_ms == float("inf"):
        return f"{start}; there are too few to certify any limit"
    return f"{start}; the smallest limit that would pass on these rows is {smallest_ms:,.0f} ms"


def saving_interval(low: float, high: float, confidence: float, rows: int) -> str:
    """State the saving on test rows as an interval, with its confidence and method."""
    return f"{percent(low)} to {percent(high)} with {percent(confidence)} confidence (delta method, {rows:,} test rows)"


def uncertified(saving: float, lost: float) -> str:
    """Describe the threshold that is tuned without a test."""
    start = f"the threshold of least cost on the tuning rows saves {percent(saving)}"
    change = f"loses {points(lost)}" if lost >= 0 else f"gains {points(-lost)}"
    return f"{start}, and {change} on certifying rows; nothing bounds its loss"


def latency(mean_ms: float, p95_ms: float, reference_mean_ms: float, reference_p95_ms: float) -> str:
    """Compare latencies with the reference on test rows."""
    return (
        f"mean {mean_ms:,.0f} ms and p95 {p95_ms:,.0f} ms, against {reference_mean_ms:,.0f} ms and "
        f"{reference_p95_ms:,.0f} ms of the reference; recorded without load"
    )


def certified_latency(quantile: str, deadline_ms: float, confidence: float) -> str:
    """State the certified limit on the latency."""
    return f"{quantile} at most {deadline_ms:,.0f} ms, with {percent(confidence)} confidence together with the loss"


def chain_length(rows: int, small: int) -> str:
    """State why only pairs were searched."""
    return (
        f"pairs only: the log has {rows:,} rows, and below {small:,}, longer chains certify less; see gates.max_models"
    )


def labels(count: int) -> str:
    """State how many rows need a label."""
    start = f"{count:,} rows answer early and differ from the reference without a label"
    return f"{start}; they count as made worse until they are labelled"


def split(tune: int, certify: int, test: int) -> str:
    """State the sizes of the parts."""
    return f"{tune:,} rows tune, {certify:,} certify, {test:,} are reported"


def confidence_source(source: Mapping[str, Any]) -> str:
    """Name the source of confidences and the version of its prompt; another one voids the promise."""
    kind, prompt = str(source.get("from")), str(source.get("prompt_sha256", ""))[:12]
    texts = {
        "logprob": f"{source.get('of')} of log-probabilities of the answer",
        "votes": f"share of the most frequent of {source.get('samples')} samples",
        "check": f"self-check by a second call of the same model, prompt {prompt}",
        "judge": f"{source.get('judge')} judges each answer, prompt {prompt}",
    }
    return texts.get(kind, "a column of the log, which no gateway can read")


def entry(share: float, model: str, *, has_embedding: bool) -> str:
    """State how many requests skip the first model, and what of the prompt decides."""
    what = "length and embedding" if has_embedding else "length"
    if share == 0.0:
        return f"the {what} of the prompt let{'' if has_embedding else 's'} no request skip {model}"
    return f"{percent(share)} of test requests skip {model}, judged by the {what} of their prompt"


def reversed_scores(models: Sequence[str]) -> str:
    """Warn of confidences which fall where answers are more often correct."""
    return f"the confidence of {', '.join(models)} is higher where answers are wrong, so it is inverted"


def weak_scores(models: Sequence[str]) -> str:
    """Warn of confidences which hardly separate correct answers from wrong ones."""
    return f"the confidence of {', '.join(models)} hardly separates correct answers from wrong ones (AUC below 0.6)"


def served_alias(alias: str, chain: Sequence[str]) -> str:
    """Describe what a gateway serves under its alias."""
    return f'"{alias}" routes through {" → ".join(chain)}'


def served_promise(max_loss: float, confidence: float, reference: str) -> str:
    """Describe the promise of a gateway."""
    return f"loses at most {limit(max_loss)} against {reference}, with {percent(confidence)} confidence"


def withdrawn(reference: str, void_reason: str) -> str:
    """State that a promise does not hold any more."""
    why = f"void: {void_reason}" if void_reason else "revoked by the audit"
    return f"{why}; all requests go to {reference}; plan again"


def unpromised(reference: str) -> str:
    """State that a gateway has nothing to promise."""
    return f"none is certified; all requests go to {reference}"


def no_log_probabilities(model: str) -> str:
    """State why a gateway does not start."""
    return f"{model} returns no log-probabilities, so its answers could never be trusted"


def served_audit(share: float, audit_limit: float | None, *, by_labels: bool) -> str:
    """Describe the audit of a gateway."""
    if audit_limit is None:
        return "off: the log has no texts of answers to certify a disagreement with, and serve.judge is not labels"
    if by_labels:
        what = f"labels sent to POST /v1/audit revoke the promise if more than {points(audit_limit)} are lost"
    else:
        what = f"the promise is revoked if more than {percent(audit_limit)} of answers differ from the reference"
    return f"{percent(share)} of requests; {what}"


def calling(spent_usd: float, cap_usd: float) -> str:
    """Name the step of a collection, with what it has spent of its cap."""
    return f"calls · ${spent_usd:,.4g} of ${cap_usd:g} spent"


def stored_calls(calls: int, total: int, spent_usd: float, cap_usd: float) -> str:
    """State what a collection that was stopped has stored, and what it may have spent with the calls in flight."""
    return f"{calls:,} of {total:,} calls are stored, at most ${spent_usd:,.4g} of ${cap_usd:g} spent"


def collected(rows: int, prompts: int, spent_usd: float, cap_usd: float, *, is_capped: bool) -> str:
    """State how much of a log was collected, and what it cost."""
    start = f"{rows:,} of {prompts:,} prompts have the answers of all models, for ${spent_usd:,.4g}"
    if is_capped:
        return f"{start}; the next call might exceed the cap of ${cap_usd:g}, so raise collect.cap"
    return start if rows == prompts else f"{start}; run it again to call what failed"


FLOW_TITLE = "The path of the test requests: which model answers, at what cost, and how often it is right"
ALL_REQUESTS = "all requests"
ENTRY_GATE = "gate on the prompt"
LATER_TURNS = "later turns stay"
CORRECT = "→ correct"
WRONG = "→ wrong"
UNLABELLED = "→ no label"


def branch_cost(per_request: float) -> str:
    """State the mean cost of the requests that a model answers, with all calls before it."""
    return f"{format_money(1000 * per_request)} per 1,000 answers"
