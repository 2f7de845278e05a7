"""``unfold plan`` with separate pools: the cheaper kind is chosen, the other stands beside it; exports start both."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from plugins.pipeline.tests.verbs.test_plan_engine import SPEC, plan_spec
from unfold_pipeline.report.engines.exports import export_kubernetes, export_llm_services, export_ray_llm, export_vllm
from unfold_pipeline.report.engines.pools import is_pool_decision
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.serve import serve
from unfoldkit.api import Report, Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

# long prompts delay the decodes that share a step with them, so that a tight time per token takes more engines
TARGETS = ("ttft_p99: 300 ms, tpot_p99: 40 ms", "ttft_p99: 1500 ms, tpot_p99: 9.5 ms")
POOLS = ("\n      steps:", "\n      disaggregated: {bandwidth: 25 GB/s, latency: 5 ms}\n      steps:")
SLOW = ("\n      steps:", "\n      disaggregated: {bandwidth: 40 MB/s, latency: 5 ms}\n      steps:")
ONE_GPU = ("hardware: {h100: {price: $4/h}, l4: {price: $0.8/h}}", "hardware: {h100: {price: $4/h}}")
ONE_SOURCE = (", l4: {roofline: true}", "")


def draw_trace() -> str:
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1 / 6, 200))
    rows = zip(arrivals, rng.integers(4000, 8000, 200), rng.integers(50, 100, 200), strict=True)
    return "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
        f"{at:.4f},{prompt},{out}\n" for at, prompt, out in rows
    )


TRACE = draw_trace()


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Return a plan of two pools."""
    return plan_spec(tmp_path_factory.mktemp("pools"), TARGETS, POOLS, ONE_GPU, ONE_SOURCE, trace=TRACE)


def test_pools_are_chosen_where_they_cost_less(tmp_path: Path, pools: Report) -> None:
    """The pools meet the targets for less than the engines of the plan without them, which the report names."""
    plain = plan_spec(tmp_path, TARGETS, ONE_GPU, ONE_SOURCE, trace=TRACE)
    cost, other = (report.metrics["cost_per_hour"].value or 0.0 for report in (pools, plain))
    assert pools.verdict is Verdict.YES
    assert cost < other
    lines = dict(pools.lines)
    assert lines["aggregated"].startswith(f"not cheaper: ${other:,.2f}/h")
    assert "128 KiB a token" in lines["transfer"]
    assert pools.metrics["ttft_p99_ms"].ok
    assert pools.metrics["tpot_p99_ms"].ok
    # a prompt of 4,000 tokens is 524 MB, which take 21 ms of a link, after 5 ms of hand-over
    assert (pools.metrics["transfer_p99_ms"].value or 0) > 26
    roles = [row[0] for row in pools.tables[0].rows]
    assert roles == ["prefill", "decode"]
    low, high = (pools.metrics[f"cost_per_hour_{end}"].value for end in ("low", "high"))
    assert low is not None
    assert low <= cost
    assert high is None or high >= cost


def test_large_requests_that_drive_the_price_of_pools_are_named(tmp_path: Path, pools: Report) -> None:
    """Two requests in two hundred take many prefill engines; the report has the price of the pools without them."""
    lines = TRACE.splitlines()
    for row in (50, 150):
        lines[row] = f"{lines[row].partition(',')[0]},160000,90"
    targets = (TARGETS[0], TARGETS[1].replace("1500 ms", "12 s"))
    report = plan_spec(tmp_path, targets, POOLS, ONE_GPU, ONE_SOURCE, trace="\n".join(lines) + "\n")
    price = report.metrics["cost_per_hour"].value
    assert is_pool_decision(report.decision)
    assert (price or 0) > 2 * (pools.metrics["cost_per_hour"].value or 0)
    assert f"/h instead of ${price:,.2f}/h" in dict(report.lines)["large requests"]


def test_engines_that_do_both_are_chosen_where_pools_cost_more(tmp_path: Path) -> None:
    """Over a slow link the first token comes too late for two pools; the report says so, and the plan is as without."""
    report = plan_spec(tmp_path, TARGETS, SLOW, ONE_GPU, ONE_SOURCE, trace=TRACE)
    plain = plan_spec(tmp_path, TARGETS, ONE_GPU, ONE_SOURCE, trace=TRACE)
    assert dict(report.lines)["disaggregated"] == "no pools of prefill and decode engines meet the targets"
    assert report.decision == plain.decision


def test_a_committed_plan_of_pools_is_checked_and_replayed(tmp_path: Path, pools: Report) -> None:
    """A replay of the plan's own trace gives its figures; ten times the traffic is a no; another spec is named."""
    saved = {"decision": pools.decision}
    changes = (TARGETS, POOLS, ONE_GPU, ONE_SOURCE)
    (tmp_path / "live.csv").write_text(TRACE, "utf-8")
    replay = plan_spec(tmp_path, *changes, trace=TRACE, plan=saved, replay=str(tmp_path / "live.csv"))
    assert replay.verdict is Verdict.YES
    assert replay.metrics["cost_per_hour"].value == pools.metrics["cost_per_hour"].value
    assert replay.tables[0].rows[0][2] == pytest.approx((pools.decision or {})["ttft_p99_ms"])
    faster = ("trace: trace.csv", "trace: trace.csv, compress: 10")
    assert plan_spec(tmp_path, *changes, faster, trace=TRACE, baseline_plan=saved).verdict is Verdict.NO
    damaged = {"decision": {**(pools.decision or {}), "engines": {}}}
    for other, without in ((saved, (TARGETS, ONE_GPU, ONE_SOURCE)), (damaged, changes)):
        with pytest.raises(UnfoldError, match=r"two pools, but the spec has none|another engine") as error:
            plan_spec(tmp_path, *without, faster, trace=TRACE, baseline_plan=other)
        assert int(error.value.code) == 2


def test_exports_start_both_pools(pools: Report) -> None:
    """Each format holds two pools with vLLM's connector; the router that they need is named."""
    transfer = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
    command = export_vllm(pools)
    assert command.startswith("# two pools need a router")
    calls = [shlex.split(line) for line in command.splitlines() if line.startswith("vllm serve")]
    assert [json.loads(call[call.index("--kv-transfer-config") + 1]) for call in calls] == [transfer] * 2
    documents = list(yaml.safe_load_all(export_kubernetes(pools)))
    deployments = [document for document in documents if document["kind"] == "Deployment"]
    assert [item["metadata"]["labels"]["llm-d.ai/role"] for item in deployments] == ["prefill", "decode"]
    container = deployments[0]["spec"]["template"]["spec"]["containers"][0]
    assert container["env"][0]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    service = yaml.safe_load(export_llm_services(pools))
    engines = (pools.decision or {})["engines"]
    assert service["metadata"]["name"] == "chat"
    assert service["spec"]["prefill"]["replicas"] == engines["chat-prefill"]["replicas"]
    assert service["spec"]["replicas"] == engines["chat-decode"]["replicas"]
    application = yaml.safe_load(export_ray_llm(pools))["applications"][0]
    assert application["import_path"].endswith(":build_pd_openai_app")
    assert application["args"]["decode_config"]["engine_kwargs"]["kv_transfer_config"] == transfer


def test_what_has_no_pools_is_named(tmp_path: Path, pools: Report) -> None:
    """A model with an unknown KV cache, and a service of this program, are errors with a hint."""
    config = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 99, "num_experts": 8}), "utf-8")
    model = "model: {" + SPEC.split("model: {")[1].split("}")[0] + "}"
    with pytest.raises(UnfoldError, match="mixture of experts"):
        plan_spec(tmp_path, POOLS, (model, "model: {config: config.json}"))
    (tmp_path / "trace.csv").write_text(TRACE, "utf-8")
    text = SPEC
    for old, new in (
        TARGETS,
        POOLS,
        ONE_GPU,
        ONE_SOURCE,
        ("\n      steps:", "\n      url: http://127.0.0.1:9\n      steps:"),
    ):
        text = text.replace(old, new)
    options = {"plan": {"decision": pools.decision}}
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path, options=options)
    with pytest.raises(UnfoldError, match="the plan has two pools"):
        serve(validate(PipelineSpec, parse(text, "chat.yaml")), run)
