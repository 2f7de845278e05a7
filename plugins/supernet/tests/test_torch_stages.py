"""Laws of a family as models for other kinds: the files that it leaves are read by them, and give the same answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from plugins.supernet.tests.helpers import make_run, parse_spec  # noqa: E402
from unfold_supernet.family import checkpoint, handoff  # noqa: E402
from unfold_supernet.family.artifacts import RECORD_FILE  # noqa: E402
from unfold_supernet.scheduling.escalation import SubnetPredictions  # noqa: E402
from unfold_supernet.scheduling.policies import SubnetProfile  # noqa: E402
from unfold_supernet.training.evaluation import predict_test_rows  # noqa: E402
from unfold_supernet.verbs.build import build_dataset  # noqa: E402
from unfold_supernet.verbs.plan import plan  # noqa: E402
from unfold_supernet.verbs.train import train  # noqa: E402
from unfoldkit.api import Run, RunDir  # noqa: E402
from unfoldkit.engines.local import LocalEngine  # noqa: E402
from unfoldkit.errors import UnfoldError  # noqa: E402
from unfoldkit.spec.yaml_reader import parse  # noqa: E402

pytestmark = pytest.mark.torch
SPEC = """
version: 1
kind: supernet
name: t
data: {source: digits}
space: {stages: [{width: 8}, {width: 16}], expand: [0.5, 1], depth: [1, 2], resolution: [0.5, 1]}
training: {epochs: 12, batch: 64, alone: false}
serving: {slo: 20 ms, escalate: 60%}
accelerator: {persistent_buffer: 16 KiB, sizes: [16 KiB], bandwidths: [4 GB/s]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of a small family."""
    path = tmp_path_factory.mktemp("run")
    train(parse_spec(SPEC), make_run(path))
    return path


def told(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Return how a command ended."""
    command = [sys.executable, "-m", "unfoldkit", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


def test_a_net_of_rows_gives_the_shares_of_the_family(folder: Path) -> None:
    """Each net that a stage can run gives, for plain rows, the shares of the net in the family."""
    spec, run = parse_spec(SPEC), make_run(folder)
    data, found = build_dataset(spec, run), checkpoint.read_supernet(run.directory)
    places = data.test[:40]
    rows = handoff.flatten_rows(data, places).astype(np.float32)
    for name in found.bound:
        session = onnxruntime.InferenceSession(str(folder / "stages" / f"{name}.onnx"))
        shares, label = session.run(None, {"rows": rows})
        logits = found(name, torch.from_numpy(data.x[places]), torch.from_numpy(data.extra[places]))
        np.testing.assert_allclose(shares, torch.softmax(logits, 1).numpy(), rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(label, shares.argmax(1))
    assert set(predict_test_rows(found, data).names) == set(found.bound)


def test_an_exported_net_names_its_classes(folder: Path) -> None:
    """Both ONNX files of a net name the classes in their metadata, in the order of shares, logits and labels."""
    for file in (*folder.glob("subnets/*.onnx"), *folder.glob("stages/*.onnx")):
        told = onnxruntime.InferenceSession(str(file)).get_modelmeta().custom_metadata_map
        assert json.loads(told["classes"]) == [str(digit) for digit in range(10)]


def test_answers_are_names_and_names_are_short_enough() -> None:
    """A cascade reads the names of the classes, and the specs of a family with a long name are valid."""
    said = SubnetPredictions(("a", "b"), np.array([[1, 0], [1, 1]]), np.full((2, 2), 0.5, np.float32), np.array([0, 1]))
    lines = handoff._format_predictions(said, ("N", "V")).splitlines()
    assert lines[0].startswith("label,a_answer,b_answer")
    assert [line.split(",")[:3] for line in lines[1:]] == [["N", "V", "V"], ["V", "N", "V"]]
    nets = [SubnetProfile("a", 90.0, ((1, 0.001),))]
    for text in (
        handoff.write_cascade_spec("n" * 80, nets),
        handoff.write_pipeline_spec("n" * 80, nets[0], nets[0], 0.1),
    ):
        assert len(str(parse(text, "t.yaml").data["name"])) <= 80


def test_a_cascade_is_planned_as_it_is(folder: Path, tmp_path: Path) -> None:
    """The cascade that a family leaves is valid, and planned by its kind as it is."""
    words = ["plan", str(folder / "stages" / "cascade.yaml"), "--run", str(tmp_path / "c"), "--format", "json"]
    done = told(words)
    assert done.returncode in {0, 1}, done.stderr
    assert json.loads(done.stdout)["kind"] == "cascade"


def test_a_pipeline_is_planned_by_what_its_stages_take(folder: Path, tmp_path: Path) -> None:
    """The pipeline that a family leaves is profiled on the family's queries, without a warning, and planned by that."""
    spec, rest = str(folder / "stages" / "pipeline.yaml"), ["--run", str(tmp_path / "p"), "--format", "json"]
    early = told(["plan", spec, *rest])
    assert early.returncode == 2
    assert "not profiled yet" in early.stderr
    done = told(["profile", spec, *rest])
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" not in done.stderr
    assert {"first", "again"} <= set(json.dumps(json.loads(done.stdout)).replace('"', " ").split())
    planned = told(["plan", spec, *rest])
    assert planned.returncode in {0, 1}, planned.stderr
    assert json.loads(planned.stdout)["kind"] == "pipeline"


def with_times(folder: Path) -> RunDir:
    """Return a run whose nets take times by their work: what a busy machine measured is another answer each time."""
    directory = RunDir(folder)
    known = json.loads(directory.read(RECORD_FILE))
    for net in known["nets"]:
        net["seconds"] = {size: 5e-5 + float(size) * net["macs"] * 2e-10 for size in net["seconds"]}
    directory.write(RECORD_FILE, json.dumps(known).encode())
    return directory


@pytest.mark.parametrize("place", ["cpu", "accelerator"])
def test_a_plan_picks_the_nets_that_a_trace_needs(folder: Path, tmp_path: Path, place: str) -> None:
    """The nets of the decision do what all do on the trace; on the chip with what its buffer keeps and its energy."""
    trace = tmp_path / "trace.csv"
    times = np.cumsum(np.random.default_rng(0).exponential(1 / 2000, 4000))
    trace.write_text("arrival_s\n" + "\n".join(f"{time:.6f}" for time in times) + "\n", "utf-8")
    spec = parse_spec(SPEC.replace("escalate: 60%", f"escalate: 60%, on: {place}"))
    directory = with_times(Path(shutil.copytree(folder, tmp_path / "run")))
    run = Run(directory=directory, engine=LocalEngine(1), options={"replay": str(trace)})
    told_ = plan(spec, run)
    assert told_.decision is not None
    assert 0.99 <= sum(told_.decision["nets"].values()) <= 1 + 1e-9
    assert abs(told_.decision["attainment"] - float(told_.metrics["attainment"].value or 0)) < 0.01
    assert ("buffer" in told_.decision) == ("energy_mj" in told_.metrics) == (place == "accelerator")
    if place == "accelerator":
        assert float(told_.metrics["energy_mj"].value or 0) > 0
        assert 0 < told_.decision["buffer"]["bytes"] <= 16 * 1024


@pytest.mark.parametrize("times", ["1\n", "2\n2\n2\n"])
def test_a_trace_without_a_rate_is_refused(folder: Path, tmp_path: Path, times: str) -> None:
    """One request, or all at one instant, is no trace to replay: the message says so, with the file."""
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s\n" + times, "utf-8")
    spec = parse_spec(SPEC)
    run = make_run(folder, options={"replay": str(trace)})
    with pytest.raises(UnfoldError, match=r"trace\.csv: all \d requests arrive at one instant"):
        plan(spec, run)
