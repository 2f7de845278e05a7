"""Run a collection and report on it."""

from __future__ import annotations

import asyncio

from unfold_cascade.language_models.collection.call_store import CallStore, open_store
from unfold_cascade.language_models.collection.profiler import CollectionTask, Collector, write_log
from unfold_cascade.language_models.gateway.plan import UpstreamLimits
from unfold_cascade.language_models.gateway.upstream import Upstreams, build_client
from unfold_cascade.language_models.openai_api.dialects import FIELDS, Dialects
from unfold_cascade.language_models.report import sentences
from unfoldkit.api import Column, Metric, Report, Run, Table, Verdict

CALLS_FILE = "calls/calls.jsonl"
LOG_FILE = "calls/log.csv"


def collect_log(name: str, task: CollectionTask, identity: str, retries: int, run: Run) -> Report:
    """Make the calls that the run does not hold yet, write the log, and report what it cost.

    Raises:
        UnfoldError: The calls of the run belong to other prompts or settings.
    """
    store = open_store(run.directory.resolve(CALLS_FILE), identity)
    try:
        collector = asyncio.run(_collect(task, store, retries, run))
    except BaseException as error:
        error.add_note(sentences.stored_calls(len(store.finished), task.calls, store.committed_usd, task.cap_usd))
        raise
    data, rows = write_log(task, store.finished)
    run.directory.write(LOG_FILE, data, made_from=identity)
    is_whole = rows == len(task.prompts)
    failures, spent = sum(collector.failures.values()), store.spent_usd
    return Report(
        kind="cascade",
        verb="profile",
        name=name,
        verdict=Verdict.YES if is_whole else Verdict.NO,
        headline=sentences.collected(
            rows, len(task.prompts), store.spent_usd, task.cap_usd, is_capped=collector.is_capped
        ),
        subtitle=(f"{len(task.models)} models", f"{len(task.prompts):,} prompts"),
        metrics={
            "rows": Metric(rows),
            "spent_usd": Metric(spent, "$", target=f"≤ {task.cap_usd:g}", ok=spent <= task.cap_usd),
            "failed_calls": Metric(failures),
        },
        tables=(_build_table(task, collector),),
        notes=tuple(f"{count:,} × {text}" for text, count in collector.failures.most_common(5)),
        next=f"unfold plan {run.directory.word}" if rows else "",
    )


async def _collect(task: CollectionTask, store: CallStore, retries: int, run: Run) -> Collector:
    import httpx

    def report_progress(done: int, total: int, spent_usd: float) -> None:
        run.progress(sentences.calling(spent_usd, task.cap_usd), done, total)
        if done % max(total // 20, 1) == 0:
            run.log.info("%d of %d calls, $%.4f of $%g spent", done, total, spent_usd, task.cap_usd)

    limits = httpx.Limits(max_connections=task.concurrency + 8)
    async with build_client(task.models, limits) as client:
        # a model without log-probabilities may still be the last one
        dialects = Dialects(fields=(*FIELDS, "logprobs"))
        upstreams = Upstreams(client, UpstreamLimits(first_token_s=120.0, retries=retries), dialects=dialects)
        collector = Collector(task, store, upstreams, report_progress)
        await collector.collect()
    return collector


def _build_table(task: CollectionTask, collector: Collector) -> Table:
    columns = (Column("model"), Column("answers"), Column("correct", "%", 1), Column("with confidence", "%", 1))
    rows = []
    for model in task.models:
        calls = [call for (_, name), call in collector.store.finished.items() if name == model.name]
        count = max(len(calls), 1)
        correct = 100 * sum(bool(call["is_correct"]) for call in calls) / count
        confident = 100 * sum(call["confidence"] is not None for call in calls) / count
        rows.append((model.name, len(calls), correct, confident))
    return Table("answers", columns, tuple(rows))
