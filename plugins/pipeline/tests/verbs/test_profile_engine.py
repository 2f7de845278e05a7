"""``unfold profile`` of a running engine over a real socket: the fit, resuming, and each fault by its name."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plugins.pipeline.tests.engine import scripted_engine as scripted
from plugins.pipeline.tests.engine.scripted_engine import Script, run_engine
from unfold_pipeline.engine.build import build_engine_problem
from unfold_pipeline.engine.endpoint import profiler
from unfold_pipeline.engine.endpoint.client import Endpoint, EndpointLimits
from unfold_pipeline.engine.endpoint.profiler import ProfileTask, measure_endpoint, measure_together
from unfold_pipeline.engine.planner.problem import EngineProblem
from unfold_pipeline.engine.step_times.endpoint_profile import (
    EndpointProfile,
    load_endpoint_profile,
    store_endpoint_profile,
)
from unfold_pipeline.engine.step_times.process_contention import measure_contention
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs import profile_engine
from unfold_pipeline.verbs.plan import plan
from unfold_pipeline.verbs.profile import profile
from unfoldkit.api import Report, Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

# a profile of a busy machine may measure the machine
ATTEMPTS = 3
SPEC = """
version: 1
kind: pipeline
name: chat
slo: {ttft_p99: 2 s, tpot_p99: 100 ms}
arrivals: {process: poisson, rate: 4/s, duration: 30 s, input: 200, output: 20}
hardware: {box: {price: $1/h}}
stages:
  chat:
    engine:
      model: {layers: 2, hidden: 64, heads: 4, kv_heads: 2, inner: 128, vocabulary: 1000}
      tensor_parallel: 1
      max_num_batched_tokens: 256
      max_num_seqs: 8
      async_scheduling: false
      kv_tokens: {box: {1: 8192}}
      url: URL
      steps: {box: {endpoint: true}}
"""


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept steps that vary: the machine that runs the tests may be busy."""
    monkeypatch.setattr(profiler, "LARGEST_DRIFT", math.inf)


def open_spec(folder: Path, url: str, *changes: tuple[str, str]) -> tuple[PipelineSpec, Run]:
    text = SPEC.replace("URL", url)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return validate(PipelineSpec, parse(text, "chat.yaml")), Run(RunDir(folder / "run"), LocalEngine(1), base=folder)


def profile_spec(folder: Path, url: str, *changes: tuple[str, str]) -> Report:
    spec, run = open_spec(folder, url, *changes)
    return profile(spec, run)


def _compare_steps(problem: EngineProblem, script: Script) -> dict[str, tuple[float, float]]:
    """Return the fitted and the scripted seconds of what the fit misses."""
    times, seconds = problem.options[0].times, {"front": (problem.settings.front_s, script.front_s)}
    for tokens, requests in ((1, 1), (8, 8), (200, 1)):
        step_s = script.overhead_s + script.per_token_s * tokens + script.per_request_s * requests
        fitted_s = times.overhead + float(times.dense[tokens] + times.sequence[requests])
        seconds[f"{requests} requests, {tokens} tokens"] = (fitted_s, step_s)
    # a sleep takes longer than it should, never shorter
    return {name: pair for name, pair in seconds.items() if not 0.8 * pair[1] <= pair[0] <= 1.5 * pair[1] + 0.002}


@pytest.mark.e2e
def test_the_fit_finds_the_steps_of_the_engine(tmp_path: Path) -> None:
    """Step times, front end and a plan come from about 40 requests at an engine with known steps."""
    for attempt in range(ATTEMPTS):
        script = Script(front_s=0.05, overhead_s=0.024, per_token_s=0.0005, per_request_s=0.002)
        folder = tmp_path / str(attempt)
        with run_engine(script) as url:
            report = profile_spec(folder, url)
        assert 30 <= script.requests <= 45
        spec, run = open_spec(folder, url)
        problem = build_engine_problem(spec, run)
        wrong = _compare_steps(problem, script)
        if not wrong:
            break
    assert not wrong
    assert report.metrics["requests"].value == script.requests - 1
    assert problem.options[0].interval.source == "endpoint"
    planned = plan(spec, run)
    assert planned.verdict is Verdict.YES
    assert (planned.decision or {})["engines"]["chat"]["replicas"] == 1


def test_engines_of_a_machine_are_measured_together(tmp_path: Path) -> None:
    """Each phase is measured at all engines at once, once only, and their slower steps give the factor."""
    spec, run = open_spec(tmp_path, "")
    task = ProfileTask(endpoint=Endpoint(url=""), longest_prompt=200, max_streams=8, limits=EndpointLimits())
    stored: list[EndpointProfile] = []

    async def measure() -> EndpointProfile:
        quick = replace(task, endpoint=Endpoint(url=url))
        alone = await measure_endpoint(quick, None, stored.append, run.progress)
        both = replace(alone, processes=2, capacity=2)
        return await measure_together(
            task, [Endpoint(url=item) for item in slow_urls], both, stored.append, run.progress
        )

    slow = [Script(overhead_s=0.02), Script(overhead_s=0.02)]
    with run_engine(Script(overhead_s=0.008)) as url, run_engine(slow[0]) as first, run_engine(slow[1]) as second:
        slow_urls = (first, second)
        profile = asyncio.run(measure())
    assert len(profile.together) == 2 * len(profile.phases)
    assert slow[0].requests == slow[1].requests
    contention = measure_contention(profile)
    assert contention is not None
    assert 1.5 < contention.decode < 3.0
    store_endpoint_profile("chat", profile, "", run)
    assert load_endpoint_profile("chat", run) == profile
    assert build_engine_problem(spec, run).options[0].contention == contention


TABLE = ("{box: {endpoint: true}}", "{l4: {endpoint: true, roofline: true}}")


def test_an_interrupted_profile_continues(tmp_path: Path) -> None:
    """What was measured before the engine failed is not measured again; then nothing is."""
    script = Script(fail_after=12)
    with run_engine(script) as url:
        with pytest.raises(UnfoldError, match="answers 503 to /v1/completions: overloaded"):
            profile_spec(tmp_path, url)
        measured = script.fail_after - 1
        script.requests, script.fail_after = 0, 1 << 30
        report = profile_spec(tmp_path, url)
        assert report.metrics["requests"].value == script.requests - 1 + measured
        script.requests = 0
        assert "were stored" in profile_spec(tmp_path, url).headline
        assert script.requests == 1


def test_a_server_of_chats_and_of_a_measured_cache_is_profiled(tmp_path: Path) -> None:
    """Without /v1/completions the chat path is used; vLLM's metrics give the size of the KV cache."""
    metrics = 'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="500"} 1.0\n'
    with run_engine(Script(chat_only=True, metrics=metrics)) as url:
        profile_spec(tmp_path, url + "/v1", ("kv_tokens: {box: {1: 8192}}\n      ", ""))
    problem = build_engine_problem(*open_spec(tmp_path, url, ("kv_tokens: {box: {1: 8192}}\n      ", "")))
    assert problem.options[0].kv_cache.tokens == 8000
    assert problem.options[0].kv_cache.is_measured


def test_a_profile_fits_the_scale_of_a_table(tmp_path: Path) -> None:
    """Next to a roofline, the measurements fit its scale and overhead instead of replacing it."""
    changes = (
        ("hardware: {box:", "hardware: {l4:"),
        ("{box: {1: 8192}}", "{l4: {1: 8192}}"),
        ("{box: {endpoint: true}}", "{l4: {endpoint: true, roofline: true}}"),
    )
    with run_engine(Script()) as url:
        profile_spec(tmp_path, url, *changes)
    option = build_engine_problem(*open_spec(tmp_path, url, *changes)).options[0]
    assert option.interval.source == "runs"
    assert option.times.overhead > 0.0005 or option.times.scale > 1.5


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (Script(fault=scripted.HIDE_USAGE), "reports no usage"),
        (Script(fault=scripted.ZERO_USAGE), "the usage reports no prompt_tokens"),
        (Script(fault=scripted.BOOLEAN_USAGE), "the usage reports no prompt_tokens"),
        (Script(fault=scripted.HIDE_STREAM), "the server does not stream"),
        (Script(fault=scripted.ONE_BURST), "all tokens arrive at once"),
        (Script(fault=scripted.STALL), "the stream stalls"),
        (Script(fault=scripted.REFUSE), "answers 503 to /v1/completions: overloaded"),
        (Script(fault=scripted.BREAK_OFF), "broke off"),
        (Script(fault=scripted.BAD_JSON), "broken JSON"),
        (Script(key="secret"), "refuses the key"),
        (Script(models=("a", "b")), "the server lists 2 models"),
    ],
)
def test_faults_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script, message: str) -> None:
    """Whatever a server lacks is an error of the user (exit code 2) at the key of its address."""
    limits = profile_engine.EndpointLimits(between_tokens_s=0.5, first_token_s=5.0)
    monkeypatch.setattr(profile_engine, "EndpointLimits", lambda: limits)
    with run_engine(script) as url, pytest.raises(UnfoldError, match=message) as error:
        profile_spec(tmp_path, url)
    assert int(error.value.code) == 2
    assert error.value.diagnostics[0].key == "stages.chat.engine.url"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((("      url: URL\n", ""),), "no running engine to measure"),
        ((("url: URL", "url: http://127.0.0.1:9"),), "the connection is refused"),
        ((("url: URL", "url: http://127.0.0.1:9\n      key_env: NO_SUCH_VARIABLE"),), "NO_SUCH_VARIABLE is not set"),
        ((("input: 200", "output: 20"),), "no tokens"),
    ],
)
def test_bad_specs_are_named(tmp_path: Path, changes: tuple[tuple[str, str], ...], message: str) -> None:
    """Without a server, an address or tokens there is nothing to measure."""
    text: Any = SPEC
    for old, new in changes:
        assert old in text
        text = text.replace(old, new if old != "input: 200" else "", 1).replace(", ,", ",")
    spec = validate(PipelineSpec, parse(text.replace("URL", "http://127.0.0.1:9"), "chat.yaml"))
    with pytest.raises(UnfoldError, match=message) as error:
        profile(spec, Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path))
    assert int(error.value.code) == 2


def test_a_mixture_of_experts_is_planned_from_its_profile(tmp_path: Path) -> None:
    """A profiled engine may have experts, which tables do not describe; its KV cache must then be measured."""
    config = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    config |= {"vocab_size": 1000, "num_key_value_heads": 2, "num_local_experts": 8}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    sizes = "{layers: 2, hidden: 64, heads: 4, kv_heads: 2, inner: 128, vocabulary: 1000}"
    changes = ((sizes, "{config: config.json}"),)
    with run_engine(Script()) as url:
        profile_spec(tmp_path, url, *changes)
    assert plan(*open_spec(tmp_path, url, *changes)).verdict is Verdict.YES
    unknown = ("kv_tokens: {box: {1: 8192}}\n      ", "")
    with pytest.raises(UnfoldError, match="size of the KV cache is not known"):
        plan(*open_spec(tmp_path, url, *changes, unknown))
    with pytest.raises(UnfoldError, match="mixture of experts"):
        plan(*open_spec(tmp_path, url, *changes, ("hardware: {box:", "hardware: {l4:"), ("{box: {1", "{l4: {1"), TABLE))


def test_plan_needs_the_profile(tmp_path: Path) -> None:
    """A plan on an engine that was not profiled names the step."""
    spec, run = open_spec(tmp_path, "http://127.0.0.1:9")
    with pytest.raises(UnfoldError, match="was not profiled yet"):
        plan(spec, run)


def test_a_damaged_profile_is_named(tmp_path: Path) -> None:
    """A stored profile with impossible times is an error with its file, not a plan."""
    with run_engine(Script()) as url:
        profile_spec(tmp_path, url)
    spec, run = open_spec(tmp_path, url)
    data = run.directory.read("profile/chat-endpoint.json").replace(b'"output_tokens": 8', b'"output_tokens": 0')
    run.directory.write("profile/chat-endpoint.json", data)
    with pytest.raises(UnfoldError, match=r"chat-endpoint\.json"):
        plan(spec, run)
