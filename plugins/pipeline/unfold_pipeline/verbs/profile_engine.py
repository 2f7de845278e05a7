"""The verb ``profile`` for a pipeline that is an LLM engine: measure the step times of a running one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from unfold_pipeline.engine.build import (
    build_local_settings,
    find_engine,
    find_step_range,
    fit_profile,
    load_token_trace,
)
from unfold_pipeline.engine.endpoint.client import Endpoint, EndpointError, EndpointLimits
from unfold_pipeline.engine.endpoint.profiler import ProfileTask, measure_endpoint, measure_together
from unfold_pipeline.engine.step_times.endpoint_profile import (
    EndpointProfile,
    load_endpoint_profile,
    store_endpoint_profile,
)
from unfold_pipeline.report.engines.endpoint import build_endpoint_report
from unfold_pipeline.runtime.engines.local_engines import build_pool
from unfold_pipeline.schema.engine import EngineSpec
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfoldkit.api import Report, Run, fingerprint, user_error
from unfoldkit.engines.local import available_cores

MAX_TOGETHER = 8
PROMPT_QUANTILE = 0.95
"""Longer prompts of the trace are extrapolated: they are rare, and slow to measure."""


def profile_engine(spec: PipelineSpec, run: Run) -> Report:
    """Measure the engine at ``engine.url``, fit its step times, and store what was measured in the run.

    Raises:
        UnfoldError: There is no url, or the server cannot be measured.
    """
    stage, engine = find_engine(spec)
    key = f"stages.{stage}.engine.{'url' if engine.local is None else 'local'}"
    if engine.url is None and engine.local is None:
        raise user_error("no running engine to measure", key=key, hint="url: http://127.0.0.1:8080")
    trace = load_token_trace(spec, run)
    needed = find_step_range(spec, engine, trace)
    processes = count_local_processes(spec, engine)
    slots = engine.max_num_seqs if isinstance(engine.max_num_seqs, int) else max(engine.max_num_seqs)
    task = ProfileTask(
        endpoint=Endpoint(url=engine.url or "", model=engine.model.name or "", key=read_key(engine, stage)),
        longest_prompt=int(np.quantile(trace.input_tokens, PROMPT_QUANTILE)),
        max_streams=slots,
        limits=EndpointLimits(),
    )
    made_from = fingerprint(
        _identify_server(engine, processes), task.endpoint.model, task.longest_prompt, slots, run.seed
    )
    stored = load_endpoint_profile(stage, run, made_from=made_from)
    measured_before = 0 if stored is None else stored.requests

    def store(profile: EndpointProfile) -> None:
        store_endpoint_profile(stage, profile, made_from, run)

    measuring = (
        measure_endpoint(task, stored, store, run.progress)
        if engine.local is None
        else _measure_local(spec, task, stored, store, processes, run)
    )
    try:
        profile = asyncio.run(measuring)
    except EndpointError as error:
        raise user_error(f"{engine.url or 'llama.cpp'}: {error.message}", key=key, hint=error.hint) from error
    fit = fit_profile(profile, engine, max_requests=needed.max_requests, max_context=needed.max_context)
    return build_endpoint_report(spec.name, stage, profile, fit, profile.requests - measured_before)


def count_local_processes(spec: PipelineSpec, engine: EngineSpec) -> int:
    """Return how many processes of a local engine are measured together: as many as may run and the cores compute for.

    Processes of the same machine slow each other down. More than ``MAX_TOGETHER`` add little.
    """
    if engine.local is None:
        return 1
    quota = max(spec.hardware[name].quota or engine.max_replicas for name in engine.steps)
    return max(1, min(engine.max_replicas, quota, available_cores() // engine.local.threads, MAX_TOGETHER))


def _identify_server(engine: EngineSpec, processes: int) -> str:
    """Return what a stored profile belongs to: an address, or the arguments of a local process."""
    if engine.local is None:
        return engine.url or ""
    return f"{processes} local {engine.local.model_dump_json()} {engine.max_num_batched_tokens}"


async def _measure_local(
    spec: PipelineSpec,
    task: ProfileTask,
    stored: EndpointProfile | None,
    store: Callable[[EndpointProfile], None],
    processes: int,
    run: Run,
) -> EndpointProfile:
    """Start processes with the largest limits, measure one alone and then all together, and end them."""
    _, engine = find_engine(spec)
    budgets = engine.max_num_batched_tokens
    budget = budgets if isinstance(budgets, int) else max(budgets)
    settings = build_local_settings(spec, run)
    pool = build_pool(settings, budget, task.max_streams, processes)
    await pool.start(processes)
    try:
        endpoints = [replace(task.endpoint, url=endpoint.url) for endpoint in pool.endpoints]
        alone = await measure_endpoint(replace(task, endpoint=endpoints[0]), stored, store, run.progress)
        profile = replace(alone, processes=processes, capacity=max(1, available_cores() // settings.threads))
        store(profile)
        if processes == 1:
            return profile
        return await measure_together(task, endpoints, profile, store, run.progress)
    finally:
        await pool.stop()


def read_key(engine: EngineSpec, stage: str) -> str:
    """Return the API key of the engines from the environment; empty for none.

    Raises:
        UnfoldError: The variable is not set.
    """
    if engine.key_env is None:
        return ""
    key = os.environ.get(engine.key_env, "")
    if not key:
        message = f"the environment variable {engine.key_env} is not set"
        raise user_error(message, key=f"stages.{stage}.engine.key_env", hint=f"export {engine.key_env}=...")
    return key
