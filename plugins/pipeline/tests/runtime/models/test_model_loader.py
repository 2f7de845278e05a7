"""Damaged models, traces without traffic and replicas that do not start are reported clearly."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.pipeline.tests.helpers import plan_stages
from unfold_pipeline.problem.model_source import ModelSource, hash_model, hash_source
from unfold_pipeline.problem.pipeline import StageConfig
from unfold_pipeline.runtime.local import LocalRuntime
from unfold_pipeline.runtime.models.model_loader import load_model
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.plan import plan
from unfold_pipeline.verbs.profile import profile
from unfold_pipeline.verbs.serve import serve
from unfoldkit.api import Run, RunDir, UnfoldError
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SPEC = """
version: 1
kind: pipeline
name: damaged
slo: {p99: 500 ms}
arrivals: {process: poisson, rate: 20/s, duration: 20 s}
hardware: {core: {price: $0.05/h}}
stages:
  good: {model: {file: good.onnx}, latency: {core: {1: 2 ms}}}
  bad: {after: {good: 1}, model: {file: bad.onnx}, latency: {core: {1: 2 ms}}}
"""
ENDS = {
    "exit": ("import os\nos._exit(9)\n", "its process ended with exit code 9"),
    "kill": ("import os\nos.kill(os.getpid(), 9)\n", r"its process ended by signal 9 \(SIGKILL\)"),
    "raise": ("raise RuntimeError('no weights\\nhere')\n", "RuntimeError: no weights"),
}


def spec_of(text: str = SPEC) -> PipelineSpec:
    """The spec of a text, as the command reads it."""
    return validate(PipelineSpec, parse(text, "mine.yaml"))


def stored(suffix: str) -> bytes:
    """A stored model that reads two numbers."""
    import skl2onnx
    import skops.io
    import xgboost
    from sklearn.linear_model import LogisticRegression

    rows = np.random.default_rng(0).random((40, 2)).astype(np.float32)
    labels = (rows[:, 0] > rows[:, 1]).astype(int)
    if suffix in ("ubj", "json"):
        fitted = xgboost.XGBClassifier(n_estimators=3, max_depth=2).fit(rows, labels)
        return bytes(fitted.get_booster().save_raw(suffix))
    linear = LogisticRegression().fit(rows, labels)
    if suffix == "skops":
        return bytes(skops.io.dumps(linear))
    return bytes(skl2onnx.to_onnx(linear, rows[:1]).SerializeToString())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run beside a model that is whole and a trace of three seconds."""
    (tmp_path / "good.onnx").write_bytes(stored("onnx"))
    (tmp_path / "t.csv").write_text("arrival_s\n" + "".join(f"{place / 10}\n" for place in range(30)))
    return Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path)


LOAD_CODE = """import sys
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.runtime.models.model_loader import load_model
load_model(ModelSource(code=sys.argv[1], folder=sys.argv[2], sha256=sys.argv[3]))
"""


@pytest.mark.parametrize("content", ["other", "half", "same"])
def test_a_file_that_was_replaced_is_not_loaded(tmp_path: Path, content: str) -> None:
    """Replicas that start later load what the first ones loaded, or nothing; the same bytes again are the same."""
    path = tmp_path / "a.ubj"
    path.write_bytes(data := stored("ubj"))
    source = ModelSource(path=str(path), sha256=hash_model(str(path)))
    path.unlink()
    path.write_bytes({"other": stored("json"), "half": data[: len(data) // 2], "same": data}[content])
    if content == "same":
        load_model(source)
        return
    with pytest.raises(UnfoldError, match="has changed since the service started"):
        load_model(source)


@pytest.mark.parametrize("changed", ["coded.py", "parts_of_code/double.py", ""])
def test_code_that_was_edited_is_not_loaded(tmp_path: Path, changed: str) -> None:
    """The modules in the folder that it imports are part of it; the same text again is the same."""
    names = {
        "coded.py": "from parts_of_code.double import double\n",
        "parts_of_code/double.py": "double = lambda x: 2 * x\n",
    }
    # a namespace package: it has no __init__.py
    (tmp_path / "parts_of_code").mkdir()
    for name, text in names.items():
        (tmp_path / name).write_text(text)
    source = ModelSource(code="coded:double", folder=str(tmp_path))
    source = replace(source, sha256=hash_source(source))
    for name, text in names.items():
        (tmp_path / name).write_text(text + "\n" * (name == changed))
    command = [sys.executable, "-c", LOAD_CODE, source.code, source.folder, source.sha256]
    # a process of its own, as a replica is: imports stay
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode == 0) is (changed == ""), result.stderr
    assert ("the code of coded:double has changed since the service started" in result.stderr) is (changed != "")


def test_replaced_external_data_is_another_model(tmp_path: Path) -> None:
    """Weights beside an ONNX file count, although the file itself stays the same."""
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "a.onnx"
    tensor = onnx.numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    options = {"save_as_external_data": True, "size_threshold": 0, "location": "weights"}
    onnx.save_model(onnx.helper.make_model(graph), path, **options)
    before = hash_model(str(path))
    (tmp_path / "weights").write_bytes(np.zeros((2, 3), np.float32).tobytes())
    assert hash_model(str(path)) != before


@pytest.mark.parametrize("suffix", ["ubj", "json", "skops", "onnx"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_truncated_model_is_reported_with_stage_and_file(tmp_path: Path, run: Run, suffix: str, share: float) -> None:
    """Half a model file, or an empty one, is reported with stage, file and hint by every verb that loads it."""
    whole = stored(suffix)
    (tmp_path / f"bad.{suffix}").write_bytes(whole[: int(len(whole) * share)])
    spec = spec_of(SPEC.replace("bad.onnx", f"bad.{suffix}"))
    message = rf"stages.bad.model: cannot load the model .*bad.{suffix}: .* \(is the file complete\?"
    for verb, options in ((profile, {}), (serve, {}), (serve, {"replay": str(tmp_path / "t.csv")})):
        with pytest.raises(UnfoldError, match=message) as error:
            verb(spec, replace(run, options=options))
        assert error.value.code == 2
        assert str(error.value).count("\n") == 0


@pytest.mark.e2e
@pytest.mark.parametrize("how", ENDS)
def test_replica_that_dies_while_starting_is_reported(tmp_path: Path, how: str) -> None:
    """A process that ends before it is ready is reported with stage and exit status, and no process remains."""
    code, message = ENDS[how]
    (tmp_path / "dying.py").write_text(code)
    runtime = LocalRuntime(
        plan_stages(["a"], [ModelSource(code="dying:x", folder=str(tmp_path))], (StageConfig(0, 1, 2),))
    )
    with pytest.raises(UnfoldError) as error:
        asyncio.run(runtime.start())
    assert error.value.code == 2
    assert error.value.diagnostics[0].key == "stages.a.model"
    assert re.fullmatch(f"replicas of a do not start: {message}", error.value.diagnostics[0].message)
    assert not runtime.stages[0].workers


@pytest.mark.e2e
def test_service_that_cannot_start_exits_with_2(tmp_path: Path) -> None:
    """Serving a model that dies while starting exits with 2 and the position in the spec, without a traceback."""
    (tmp_path / "dying.py").write_text(ENDS["exit"][0])
    text = SPEC.replace("file: good.onnx", "code: 'dying:x', features: 2").split("  bad:")[0]
    (tmp_path / "mine.yaml").write_text(text)
    command = [sys.executable, "-m", "unfoldkit", "serve", "mine.yaml", "--port", "0", "--allow-code"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "never retrieved" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("mine.yaml:9:10: stages.good.model: replicas of good do not start")


@pytest.mark.parametrize(
    ("traffic", "message"),
    [
        ("{trace: empty.csv}", "empty.csv: the trace has no arrival"),
        ("{trace: one.csv}", "arrivals: one query is no traffic"),
        ("{trace: same.csv}", "arrivals: 3 queries at one instant are no traffic"),
        ("{trace: same.csv, share: 0.5}", "arrivals: no query arrives in the sample .*larger share"),
        ("{process: poisson, rate: 1/s, duration: 1 ms}", "arrivals: no query arrives in the sample .*longer duration"),
    ],
)
def test_traffic_without_a_rate_is_rejected(tmp_path: Path, run: Run, traffic: str, message: str) -> None:
    """A sample without arrivals, or with all of them at one instant, is rejected: it has no rate."""
    traces(tmp_path)
    text = SPEC.replace("{process: poisson, rate: 20/s, duration: 20 s}", traffic)
    with pytest.raises(UnfoldError, match=message) as error:
        plan(spec_of(text), run)
    assert error.value.code == 2


@pytest.mark.parametrize("name", ["empty", "one", "none"])
def test_replayed_trace_without_traffic_is_rejected(tmp_path: Path, run: Run, name: str) -> None:
    """A replayed trace that is missing or empty is reported by its file or the option."""
    traces(tmp_path)
    (tmp_path / "bad.onnx").write_bytes(stored("onnx"))
    given: dict[str, Any] = {"replay": str(tmp_path / f"{name}.csv")}
    for verb in (plan, serve):
        with pytest.raises(UnfoldError, match=rf"^(--replay: .*|.*{name}.csv: .*)") as error:
            verb(spec_of(), replace(run, options=given))
        assert error.value.code == 2


def test_model_with_other_features_than_the_queries_is_rejected(tmp_path: Path, run: Run) -> None:
    """A stage that reads numbers which the queries do not have is rejected before anything starts."""
    import xgboost

    rows = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    fitted = xgboost.XGBClassifier(n_estimators=2).fit(rows, (rows[:, 2] > 0.5).astype(int))
    (tmp_path / "bad.ubj").write_bytes(bytes(fitted.get_booster().save_raw("ubj")))
    (tmp_path / "bad.onnx").write_bytes(stored("onnx"))
    spec = SPEC.replace("after: {good: 1}", "after: {good: 1}, inputs: {x: request}")
    for text in (spec.replace("bad.onnx", "bad.ubj"), spec.replace("bad.onnx}", "bad.onnx, columns: [1, 2]}")):
        with pytest.raises(UnfoldError, match=r"stages.bad.model: reads 3 numbers per row, and queries have 2"):
            serve(spec_of(text), replace(run, options={"replay": str(tmp_path / "t.csv")}))


def traces(folder: Path) -> None:
    """Write traces with no traffic in them."""
    for name, rows in (("empty", []), ("one", [0]), ("same", [4, 4, 4])):
        (folder / f"{name}.csv").write_text("\n".join(["arrival_s", *map(str, rows)]) + "\n")


@pytest.mark.parametrize("is_fit_for_zeros", [True, False])
def test_no_query_waits_for_what_a_library_loads_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_fit_for_zeros: bool
) -> None:
    """The first row of a model is none of a query; whether it is answered does not matter."""
    from sklearn.linear_model import LogisticRegression

    shapes = []

    def predict(_model: Any, rows: Any) -> Any:
        shapes.append(rows.shape)
        if not is_fit_for_zeros:
            raise ValueError("zeros")
        return rows

    (tmp_path / "a.skops").write_bytes(stored("skops"))
    monkeypatch.setattr(LogisticRegression, "predict_proba", predict)
    load_model(ModelSource(path=str(tmp_path / "a.skops")))
    assert shapes == [(1, 2)]
