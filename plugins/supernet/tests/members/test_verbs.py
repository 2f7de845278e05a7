"""A list of ONNX models from its spec to a measured replay and the HTTP service; no torch."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from plugins.supernet.tests.helpers import make_run, parse_spec
from plugins.supernet.tests.members.builders import write_model
from tests.served import serving, unfold
from unfold_supernet.members import profile as profile_module
from unfold_supernet.members.files import CheckedFile, MemberFile, check_file
from unfold_supernet.members.isolated_measurement import ProbeResult, probe_file
from unfold_supernet.members.profile import PROFILE_FILE, measure_members, read_members
from unfold_supernet.members.runtime import RETRY_S, MemberPool, MemberSource, compute_shares
from unfold_supernet.replay.residency import PLAN_FILE
from unfold_supernet.scheduling.policies import build_profile
from unfold_supernet.scheduling.residency import MemberCost, Residency
from unfold_supernet.serving.model import SupernetModel
from unfold_supernet.verbs.build import build_member_list
from unfold_supernet.verbs.plan import plan
from unfold_supernet.verbs.profile import profile
from unfold_supernet.verbs.serve import serve
from unfoldkit.api import Report, UnfoldError
from unfoldkit.serving.model import Batch, Call, CategoricalColumn, PathChoice
from unfoldkit.serving.oip.errors import InvalidRequest

SPEC = """
version: 1
kind: supernet
name: list
members:
  - {path: small.onnx, accuracy: 80%}
  - {path: single.onnx, accuracy: 85%, name: one-row}
  - {path: large.onnx, accuracy: 95%}
classes: [a, b, c]
serving: {slo: 200 ms}
"""
SIZE = (2, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three models, measured once, and a trace."""
    path = tmp_path_factory.mktemp("list")
    write_model(path / "small.onnx", width=8, size=SIZE)
    write_model(path / "single.onnx", width=16, size=SIZE, rows=1, softmax=True)
    write_model(path / "large.onnx", width=768, depth=3, size=SIZE, external="large.bin")
    (path / "list.yaml").write_text(SPEC, "utf-8")
    times = np.cumsum(np.random.default_rng(0).exponential(0.01, 60))
    rows = [f"{time:.5f},{0.9 if index % 3 else ''}" for index, time in enumerate(times)]
    (path / "trace.csv").write_text("time_s,least_accuracy\n" + "\n".join(rows) + "\n", "utf-8")
    report = profile(parse_spec(SPEC), make_run(path / "runs" / "list", base=path))
    assert [row[0] for row in report.tables[0].rows][-1] == "large"
    return path


def test_nothing_is_measured_twice(folder: Path) -> None:
    """A plan reads the figures of the profile; a changed file is measured again, the others are not."""
    run = make_run(folder / "runs" / "list", base=folder)
    before = json.loads(run.directory.read(PROFILE_FILE))["probes"]
    report = plan(parse_spec(SPEC), run)
    assert json.loads(run.directory.read(PROFILE_FILE))["probes"] == before
    assert report.metrics["members"].value == 3
    assert dict(report.lines)["memory"].endswith("no limit")


def test_delayed_measurements_are_noted_until_they_are_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of a busy machine are flagged in each report; only a profile takes new ones, and only of these."""
    run = make_run(folder / "runs" / "delayed", base=folder)
    stored = json.loads((folder / "runs" / "list" / PROFILE_FILE).read_text("utf-8"))
    for digest, waiting in zip(stored["probes"], (0.0, 0.6, 0.0), strict=True):
        stored["probes"][digest] |= {"waiting": waiting}
    run.directory.write(PROFILE_FILE, json.dumps(stored).encode())
    (note,) = plan(parse_spec(SPEC), run).notes
    assert note.startswith("Other programs delayed the measurement of one-row.")
    calls = list[str]()

    def repeat(file: CheckedFile) -> ProbeResult:
        calls.append(file.member.name)
        return replace(profile_module._parse_probe(stored["probes"][file.digest]), waiting=0.0)

    monkeypatch.setattr(profile_module, "probe_file", repeat)
    assert not profile(parse_spec(SPEC), run).notes
    assert calls == ["one-row"]


def test_models_of_a_fixed_number_of_rows_are_ordered_by_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight batches of four rows take longer than one of 32, so the model of single batches is not dominated."""
    write_model(tmp_path / "small.onnx", width=8, size=SIZE)
    write_model(tmp_path / "single.onnx", width=16, size=SIZE, rows=4)
    spec = parse_spec("""
version: 1
kind: supernet
name: list
members: [{path: small.onnx, accuracy: 70%}, {path: single.onnx, accuracy: 90%}]
serving: {slo: 200 ms}
""")

    def probe(file: CheckedFile) -> ProbeResult:
        seconds = {1: 0.001, 4: 0.001} if file.fixed_rows else {1: 0.0005, 32: 0.004}
        return ProbeResult(
            output_name="y", classes=3, is_probability=False, load_s=0.01, bytes=1000, seconds=seconds, waiting=0.0
        )

    monkeypatch.setattr(profile_module, "probe_file", probe)
    report = profile(spec, make_run(tmp_path / "run", base=tmp_path))
    assert [row[0] for row in report.tables[0].rows] == ["small", "single"]
    assert "dominated" not in dict(report.lines)


def test_members_return_what_onnx_runtime_returns(folder: Path) -> None:
    """Logits become probabilities, probabilities stay, and a model of single rows serves many."""
    spec, run = parse_spec(SPEC), make_run(folder / "runs" / "list", base=folder)
    members = measure_members(build_member_list(spec, run), run.directory, run.progress)
    x = np.random.default_rng(1).normal(size=(5, *SIZE)).astype(np.float32)
    pool = MemberPool(members.sources, Residency(costs=members.costs, budget_bytes=members.needed_bytes))
    for source, model in zip(members.sources, pool.bind(), strict=True):
        shares = model(x, np.zeros((5, 0), np.float32))
        assert shares.sum(axis=1) == pytest.approx(1, abs=1e-5)
        session = onnxruntime.InferenceSession(source.file.member.path)
        rows = [session.run(None, {"x": row[None]})[0] for row in x]
        assert (shares.argmax(1) == np.concatenate(rows).argmax(1)).all()


def open_pool(path: Path) -> MemberPool:
    """Open a model with logits ``y``, unless its graph says otherwise."""
    file = check_file(MemberFile(name=path.stem, path=path, accuracy=90.0, key="members[0]"))
    sources = (MemberSource(file=file, output_name="y", is_probability=False),)
    return MemberPool(sources, Residency(costs=(MemberCost(1, 0.0),), budget_bytes=1))


def test_a_softmax_that_is_rounded_stays_a_probability(tmp_path: Path) -> None:
    """Eight bits do not sum to one; such outputs are no logits, and pass as they are."""
    model = onnx.load(write_model(tmp_path / "rounded.onnx", classes=10, scale=9.0, softmax=True))
    model.graph.node[-1].output[0] = "exact"
    model.graph.initializer.append(numpy_helper.from_array(np.array(1 / 250, np.float32), "step"))
    model.graph.node.append(helper.make_node("QuantizeLinear", ["exact", "step"], ["rounded"]))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["rounded", "step"], ["y"]))
    onnx.save(model, tmp_path / "rounded.onnx")
    x = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    (shares,) = (model(x, x[:, :0]) for model in open_pool(tmp_path / "rounded.onnx").bind())
    expected = onnxruntime.InferenceSession(tmp_path / "rounded.onnx").run(None, {"x": x})[0]
    assert shares == pytest.approx(expected)


def test_shares_of_trees_below_zero_stay_probabilities(tmp_path: Path) -> None:
    """Sums over trees that round to -1e-7 are no logits: a softmax would flatten the confidences of a forest."""
    model = onnx.load(write_model(tmp_path / "trees.onnx", softmax=True, scale=20.0))
    model.graph.node[-1].output[0] = "exact"
    offset = np.array([-1e-6, 0, 1e-6], np.float32)
    model.graph.initializer.append(numpy_helper.from_array(offset, "offset"))
    model.graph.node.append(helper.make_node("Add", ["exact", "offset"], ["y"]))
    onnx.save(model, tmp_path / "trees.onnx")
    file = check_file(MemberFile(name="trees", path=tmp_path / "trees.onnx", accuracy=90.0, key="members[0]"))
    probe = probe_file(file)
    session = onnxruntime.InferenceSession(tmp_path / "trees.onnx")
    x = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    (expected,) = session.run(None, {"x": x})
    assert expected.min() < 0
    source = MemberSource(file=file, output_name="y", is_probability=probe.is_probability)
    assert compute_shares(session, source, x) == pytest.approx(np.clip(expected, 0, 1))


def test_sigmoids_of_classes_are_divided_by_their_sum(tmp_path: Path) -> None:
    """A probability of each class against all others is no logit, as scikit-learn's one-vs-rest treats it."""
    model = onnx.load(write_model(tmp_path / "each.onnx"))
    model.graph.node[-1].op_type = "Sigmoid"
    onnx.save(model, tmp_path / "each.onnx")
    x = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    (shares,) = (model(x, x[:, :0]) for model in open_pool(tmp_path / "each.onnx").bind())
    each = onnxruntime.InferenceSession(tmp_path / "each.onnx").run(None, {"x": x})[0]
    assert shares == pytest.approx(each / each.sum(1, keepdims=True))


def test_a_model_of_doubles_gets_its_inputs_unrounded(tmp_path: Path) -> None:
    """A service passes values that single precision would round, and compares scores in double precision."""
    weights = {"w": np.array([[1.0, 0.0]]), "b": np.array([0.0, 2.0**25 + 0.5])}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "b"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["n", size]) for name, size in (("x", 1), ("y", 2))]
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "steps", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "doubles.onnx").write_bytes(model.SerializeToString())
    served = SupernetModel(
        name="list", version="1", inputs=(), facts={}, classes=("above", "below"),
        profiles=(build_profile("doubles", 90.0, {1: 1e-3, 4: 1e-3}),),
        bound=open_pool(tmp_path / "doubles.onnx").bind(), count_batch=lambda *_: None, clock=lambda: 0.0,
    )  # fmt: skip
    predictions = served.predict(Batch({"x": np.array([[2.0**25], [2.0**25 + 1]])}, (Call(2),)))
    label = predictions.columns["label"]
    assert isinstance(label, CategoricalColumn)
    assert list(label.codes) == [1, 0]


def test_ids_that_an_embedding_lacks_are_mistakes_of_the_client(tmp_path: Path) -> None:
    """ONNX Runtime refuses a number that no row of a table has: the request gets 400 with the reason."""
    table = numpy_helper.from_array(np.eye(3, dtype=np.float32), "table")
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["y"], keepdims=0),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 2), ("y", 3))]
    axis = numpy_helper.from_array(np.array([1]), "axis")
    graph = helper.make_graph(nodes, "bag", ends[:1], ends[1:], [table, axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "bag.onnx").write_bytes(model.SerializeToString())
    served = SupernetModel(
        name="list", version="1", inputs=(), facts={}, classes=("a", "b", "c"),
        profiles=(build_profile("bag", 90.0, {1: 1e-3, 4: 1e-3}),),
        bound=open_pool(tmp_path / "bag.onnx").bind(), count_batch=lambda *_: None, clock=lambda: 0.0,
    )  # fmt: skip
    assert served.predict(Batch({"x": np.array([[2.0, 2.0]])}, (Call(1),))).columns["confidence"][0] > 0.7
    with pytest.raises(InvalidRequest, match="cannot handle one of the inputs: indices element out of data bounds"):
        served.predict(Batch({"x": np.array([[2.0, 3.0]])}, (Call(1),)))


@pytest.mark.e2e
@pytest.mark.parametrize("spare_bytes", [1, -1])
def test_replay_with_little_memory_is_planned_and_measured(folder: Path, spare_bytes: int) -> None:
    """A plan for a memory that holds one model, or not even the largest, is stored; a measured replay keeps to it."""
    run = make_run(folder / "runs" / "list", base=folder, options={"replay": str(folder / "trace.csv")})
    spec = parse_spec(SPEC)
    members = measure_members(build_member_list(spec, run), run.directory, run.progress)
    budget = max(cost.bytes for cost in members.costs) + spare_bytes
    short = parse_spec(SPEC.replace("slo: 200 ms", f"slo: 200 ms, memory: {budget} B"))
    report = plan(short, run)
    assert report.tables[-1].name == "residency"
    if spare_bytes < 0:
        assert next(row[-1] for row in report.tables[-1].rows if row[0] == "large") == "not used"
    assert run.directory.has(PLAN_FILE)
    measured = serve(short, run)
    assert isinstance(measured, Report)
    names = [row[0] for row in measured.tables[0].rows]
    assert names[:3] == ["steady", "least recently used", "least frequently used"]
    assert measured.metrics["attainment_only_small"].value == 1.0


def test_changed_file_is_not_served(folder: Path, tmp_path: Path) -> None:
    """A file that was not measured is named with the verb that measures it."""
    for name in ("single.onnx", "large.onnx", "large.bin"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    write_model(tmp_path / "small.onnx", width=9, size=SIZE)
    with pytest.raises(UnfoldError, match="not measured") as caught:
        serve(parse_spec(SPEC), make_run(folder / "runs" / "list", base=tmp_path))
    assert caught.value.diagnostics[0].hint == "unfold profile SPEC"


@pytest.mark.parametrize(("member", "file"), [("small", "small.onnx"), ("large", "large.bin")])
def test_a_file_replaced_while_it_is_served_is_not_opened(folder: Path, tmp_path: Path, member: str, file: str) -> None:
    """A member that is loaded later holds the weights that were measured; a copy of its file is as good."""
    for name in ("small.onnx", "single.onnx", "large.onnx", "large.bin"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    run = make_run(folder / "runs" / "list", base=tmp_path)
    members = read_members(build_member_list(parse_spec(SPEC), run), run.directory)
    index = [profile.name for profile in members.profiles].index(member)
    now, logged = [0.0], list[str]()
    residency = Residency(costs=members.costs, budget_bytes=members.needed_bytes)
    pool = MemberPool(members.sources, residency, lambda: now[0], logged.append)
    content = (tmp_path / file).read_bytes()
    if member == "small":
        write_model(tmp_path / file, width=9, size=SIZE)
    else:
        (tmp_path / file).write_bytes(content[::-1])
    for _ in range(2):
        with pytest.raises(UnfoldError, match="changed since it was measured"):
            pool.acquire(index)
    assert not residency.resident
    (tmp_path / file).write_bytes(content)
    # reading a file for every batch would take longer than running its model
    with pytest.raises(UnfoldError, match="changed since it was measured"):
        pool.acquire(index)
    assert len(logged) == 1
    now[0] += RETRY_S
    assert pool.acquire(index).get_inputs()


def test_requests_of_a_member_that_is_gone_run_on_others(folder: Path, tmp_path: Path) -> None:
    """A deleted file costs the service one member: others that are accurate enough answer, under their own names."""
    for name in ("small.onnx", "single.onnx", "large.onnx", "large.bin"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    run = make_run(folder / "runs" / "list", base=tmp_path)
    members = read_members(build_member_list(parse_spec(SPEC), run), run.directory)
    pool = MemberPool(members.sources, Residency(costs=members.costs, budget_bytes=members.needed_bytes))
    (tmp_path / "large.onnx").unlink()
    model = SupernetModel(
        name="list",
        version="1",
        inputs=(),
        facts={},
        classes=("a", "b", "c"),
        profiles=members.profiles,
        bound=pool.bind(),
        count_batch=lambda _subnet, _in_time: None,
        clock=lambda: 0.0,
    )
    names = [profile.name for profile in members.profiles]
    x = np.random.default_rng(2).normal(size=(2, *SIZE))

    def answer(*least_accuracies: float) -> list[Any]:
        turn = PathChoice(names.index("large"), (9.0,) * len(least_accuracies), 0.0)
        calls = tuple(Call(2 // len(least_accuracies), least_accuracy=least) for least in least_accuracies)
        outputs = model.predict(Batch({"x": x}, calls, turn=turn)).columns
        column = outputs["net"]
        assert isinstance(column, CategoricalColumn)
        return [column.values[code] for code in column.codes]

    assert answer(0.0) == answer(0.85) == ["one-row"] * 2
    assert answer(0.99) == ["one-row"] * 2
    with pytest.raises(UnfoldError, match=r"large\.onnx"):
        answer(0.9)
    # a call that asks for more than any member has does not lower what another one of its batch gets
    with pytest.raises(UnfoldError, match=r"large\.onnx"):
        answer(0.9, 0.99)


@pytest.mark.e2e
def test_service_answers_within_deadline_and_accuracy(folder: Path) -> None:
    """Over HTTP, a request with a minimum accuracy gets the large member, and all outputs name their member."""
    planned = unfold(folder, "plan", "list.yaml", "--replay", "trace.csv", "--format", "json")
    assert planned.returncode == 0, planned.stderr
    with serving(folder, "list.yaml") as (_, address):
        x = np.random.default_rng(2).normal(size=(3, *SIZE))
        answer = send(address, x, {"deadline_ms": 20_000, "least_accuracy": 0.9})
        assert set(answer["net"]) == {"large"}
        assert answer["accurate_enough"] == [True] * 3
        session = onnxruntime.InferenceSession(folder / "large.onnx")
        logits = session.run(None, {"x": x.astype(np.float32)})[0]
        assert answer["label"] == ["abc"[label] for label in logits.argmax(1)]


def send(address: str, x: Any, parameters: dict[str, Any]) -> dict[str, list[Any]]:
    """Send an inference request and return the outputs by name."""
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP64", "data": x.ravel().tolist()}
    body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    request = urllib.request.Request(f"{address}/v2/models/list/infer", body)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return {output["name"]: output["data"] for output in json.load(reply)["outputs"]}
