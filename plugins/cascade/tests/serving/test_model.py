"""What is served is what was planned: same answers, same routes, same costs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from plugins.cascade.tests.runs import CONFIGS, TUMOURS, load_served, run_in, spec_of
from unfold_cascade.models import onnx_runtime
from unfold_cascade.models.onnx_runtime import NATIVE, ONNX, Engine, load_probe
from unfold_cascade.planner.policy import follow, path_cost
from unfold_cascade.report.dashboard import build_reader
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.serving.loader import LoadedPlan
from unfold_cascade.serving.model import BatchResult, Cascade
from unfold_cascade.serving.service import build_cascade, build_counter
from unfold_cascade.verbs import serve, train
from unfoldkit.api import ExitCode, Run, UnfoldError, dump, fingerprint
from unfoldkit.report import Report
from unfoldkit.serving.model import Batch, Call

BASE = "{estimator: svc, params: {C: 10, gamma: 0.001}, scale: false}"
SMALL = (
    f"baseline.candidates=[{BASE}]",
    "stages[0].models=[{name: linear, estimator: logistic-regression}, {name: whole, estimator: baseline}]",
    "stages[1].models=[{name: linear, estimator: logistic-regression}, {name: whole, estimator: baseline}]",
    "gates.folds=2",
    "goal.max_loss=8%",
)


def planned(run: Run, spec: CascadeSpec, report: Report) -> Run:
    """Return the surroundings of `serve` after a verb, as the command line gives them."""
    plan = {"spec_sha256": fingerprint(dump(spec)), "seed": run.seed, "decision": report.decision}
    return replace(run, options={"plan": plan})


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[CascadeSpec, Run]:
    """Return a trained cascade of two stages, each with the monolith as its last resort."""
    spec, run = spec_of(CONFIGS / "digits.yaml", *SMALL), run_in(tmp_path_factory.mktemp("digits"), seed=3)
    return spec, planned(run, spec, train(spec, run))


@pytest.fixture(scope="module")
def tumours(tmp_path_factory: pytest.TempPathFactory) -> tuple[CascadeSpec, Run]:
    """Return a trained cascade of one stage, priced by feature groups, with an XGBoost model."""
    spec, run = spec_of(TUMOURS), run_in(tmp_path_factory.mktemp("tumours"))
    return spec, planned(run, spec, train(spec, run))


@pytest.fixture(params=["digits", "tumours"])
def served(request: pytest.FixtureRequest) -> tuple[LoadedPlan, Run, Cascade, dict[str, Engine]]:
    spec, run = request.getfixturevalue(request.param)
    loaded = load_served(spec, run)
    model, engines = build_cascade(loaded, run, lambda _way: None)
    return loaded, run, model, engines


def elsewhere(run: Run, folder: Path) -> Run:
    """Return a copy of a run that may be spoilt."""
    shutil.copytree(run.directory.path, folder / "run")
    return replace(run, directory=type(run.directory)(folder / "run"))


def probe_of(loaded: LoadedPlan, run: Run) -> onnx_runtime.Probe:
    return load_probe(loaded.problem.data, loaded.problem.dataset, run.directory)


@pytest.mark.e2e
def test_answers_routes_and_costs_are_those_of_the_plan(served: Any) -> None:
    """Every row set aside gets the answer, the exits and the cost that the plan gave it, and a route that adds up."""
    loaded, run, model, engines = served
    probe = probe_of(loaded, run)
    expected, found = follow(loaded.tables, loaded.policy, probe.rows), model.follow(probe.x)
    np.testing.assert_array_equal(found.answer, expected.answer)
    np.testing.assert_allclose(model.paths.cost[found.path], expected.cost)
    asked = expected.exit_first + 1 + np.where(expected.exit_second >= 0, expected.exit_second + 1, 0)
    np.testing.assert_array_equal(np.array(model.paths.length)[found.path], asked)
    assert {engine.name for engine in engines.values()} == {ONNX}
    for row, way in enumerate(found.path):
        steps = model.paths.length[way]
        cuts, scores = model.paths.cuts[way], found.score[row]
        assert sum(model.paths.call_costs[way]) == pytest.approx(expected.cost[row])
        assert found.confidence[row] == scores[steps - 1]
        assert set(model.paths.models[way][steps:]) <= {""}
        assert all(model.paths.models[way][:steps])
        last_first = expected.exit_first[row]
        assert all(scores[k] < cuts[k] for k in range(steps - 1) if k != last_first)
        assert scores[last_first] >= cuts[last_first]


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_answers_do_not_depend_on_the_batch(served: Any, rows: int) -> None:
    """What a row is answered does not depend on the rows that it is batched with."""
    loaded, run, model, _ = served
    x = probe_of(loaded, run).x[:70]
    whole = model.follow(x)
    parts = [model.follow(x[start : start + rows]) for start in range(0, 70, rows)]
    np.testing.assert_array_equal(whole.answer, np.concatenate([part.answer for part in parts]))
    np.testing.assert_array_equal(whole.path, np.concatenate([part.path for part in parts]))
    np.testing.assert_allclose(whole.score, np.concatenate([part.score for part in parts]), atol=1e-6)


def test_native_and_converted_models_agree(served: Any) -> None:
    """The native models, asked for instead, give the same answers, ways and (nearly) scores."""
    loaded, run, model, _ = served
    probe = probe_of(loaded, run)
    engines = {
        name: onnx_runtime.choose_slot_engine(run, *loaded.models[tuple(name.split("/"))], probe, native=True)  # type: ignore[index,misc]
        for name in served[3]
    }
    assert {engine.name for engine in engines.values()} == {NATIVE}
    for name, engine in engines.items():
        slot, _ = loaded.models[tuple(name.split("/"))]  # type: ignore[index]
        x = probe.x[:, slot.columns]
        np.testing.assert_allclose(
            engine.predict(x), served[3][name].predict(x.astype(served[3][name].dtype)), atol=1e-5
        )
    assert isinstance(model.follow(probe.x[:1]), BatchResult)


def test_outputs_fit_their_declaration(served: Any) -> None:
    """Every output that is declared is answered, one entry a row, and counted only when it is no trial."""
    loaded, run, model, _ = served
    x = probe_of(loaded, run).x[:5]
    answers = model.predict(Batch({"x": x}, (Call(5),)))
    assert set(answers.columns) == {item.name for item in model.outputs}
    assert model.facts["serves"] == "cascade"
    assert set(model.facts["engines"]) == set(served[3])


def test_evaluated_models_are_counted(digits: Any) -> None:
    """The counters hold how often each model was asked, which answered, and what was paid in all."""
    loaded, registry = load_served(*digits), CollectorRegistry()
    model, _ = build_cascade(loaded, digits[1], build_counter(loaded, registry))
    x = probe_of(loaded, digits[1]).x[:100]
    model.predict(Batch({"x": x}, (Call(100),)))
    model.predict(Batch({"x": x}, (Call(100),), trial=True))
    found = model.follow(x)
    value = registry.get_sample_value
    assert value("unfold_cascade_asked_total", {"stage": "coarse", "model": "linear"}) == 100
    answered = sum(s.value for m in registry.collect() for s in m.samples if s.name == "unfold_cascade_answered_total")
    assert answered == 100
    asked = sum(s.value for m in registry.collect() for s in m.samples if s.name == "unfold_cascade_asked_total")
    assert asked == np.array(model.paths.length)[found.path].sum()
    assert value("unfold_cascade_cost_total", {"unit": "FLOPs"}) == pytest.approx(model.paths.cost[found.path].sum())


def test_the_dashboard_shows_the_shares_of_the_report(digits: Any) -> None:
    """Of all cases so many were asked, of those so many stopped there: as in the table of the route."""
    loaded, registry = load_served(*digits), CollectorRegistry()
    model, _ = build_cascade(loaded, digits[1], build_counter(loaded, registry))
    probe = probe_of(loaded, digits[1])
    model.predict(Batch({"x": probe.x}, (Call(len(probe.x)),)))
    end, chain = follow(loaded.tables, loaded.policy, probe.rows).exit_first, loaded.policy.first_stage.chain
    asked, sure = build_reader("FLOPs")(registry).shares
    assert (asked.title, sure.title) == ("evaluated, of all cases", "exits, of those evaluated")
    for position, m in enumerate(chain):
        name = f"coarse/{loaded.tables.first_stage.models[m]}"
        assert asked.values[name] / (asked.wholes or {})[name] == pytest.approx((end >= position).mean())
        assert (sure.values[name], (sure.wholes or {})[name]) == ((end == position).sum(), (end >= position).sum())


def test_a_deviating_conversion_is_not_served(digits: Any, tmp_path: Path) -> None:
    """A converted model that differs on the rows set aside is left for the native one, and it is said why."""
    spec, run = digits[0], elsewhere(digits[1], tmp_path)
    loaded = load_served(spec, run)
    probe = probe_of(loaded, run)
    slot, log = loaded.models["fine", "round", "linear"]
    other, _ = loaded.models["fine", "straight", "linear"]
    assert onnx_runtime.choose_slot_engine(run, slot, log, probe).name == ONNX
    for form in ("float32", "float64"):
        name = f"serving/fine/round/linear.{form}.onnx"
        made_from = onnx_runtime.conversion_fingerprint(slot)
        onnx_runtime._convert_once(run, other, np.dtype(form).type)
        run.directory.write(name, run.directory.read(f"serving/fine/straight/linear.{form}.onnx"), made_from=made_from)
    found = onnx_runtime.choose_slot_engine(run, slot, log, probe)
    assert found.name == NATIVE
    assert "returns another shape" in found.reason
    nudged = replace(log, probability=log.probability + 1e-3)
    assert "differs by 0.001" in onnx_runtime.choose_slot_engine(digits[1], slot, nudged, probe).reason
    turned = replace(log, probability=np.roll(log.probability, 1, axis=1))
    assert "changes the label of" in onnx_runtime.choose_slot_engine(digits[1], slot, turned, probe).reason


def test_a_cascade_that_deviates_from_its_plan_is_not_served(digits: Any) -> None:
    """If even the native models send rows elsewhere than the plan, nothing is served."""
    loaded = load_served(*digits)
    first = loaded.tables.first_stage
    zoo = replace(loaded.tables, first_stage=replace(first, price=first.price + 1.0))
    other = replace(loaded, tables=zoo)
    model, _ = build_cascade(loaded, digits[1], lambda _way: None)
    assert path_cost(zoo, zoo.first_stage, (0,), frozenset())[0] > path_cost(loaded.tables, first, (0,), frozenset())[0]
    from unfold_cascade.serving.service import count_deviations

    assert count_deviations(other, model, probe_of(loaded, digits[1])) == len(probe_of(loaded, digits[1]).rows)
    assert count_deviations(loaded, model, probe_of(loaded, digits[1])) == 0


def test_the_baseline_is_served_without_a_certificate(digits: Any) -> None:
    """When the answer was no, the best single model answers every row, at its own cost, and the service says so."""
    spec, run = digits
    plan = run.options["plan"]
    run = replace(run, options={"plan": {**plan, "decision": plan["decision"] | {"cascade": None}}})
    loaded = load_served(spec, run)
    model, engines = build_cascade(loaded, run, lambda _way: None)
    probe = probe_of(loaded, run)
    found = model.follow(probe.x)
    np.testing.assert_array_equal(found.answer, loaded.tables.candidates.answer[probe.rows, 0])
    assert set(engines) == {"baseline/all/svc-1"}
    assert model.paths.cost.tolist() == [path_cost(loaded.tables, loaded.tables.candidates, (0,), frozenset())[0]]
    assert model.facts["serves"] == "monolith"
    assert ("serves", "the baseline svc-1: no cascade was certified") in serve(spec, run).lines


def test_curves_are_served(tmp_path: Path) -> None:
    """Gates that know the answer (label-conditional) are served with their curves."""
    spec, run = spec_of(TUMOURS, "gates.confidence=label-conditional", "goal.max_loss=10%"), run_in(tmp_path)
    run = planned(run, spec, train(spec, run))
    loaded = load_served(spec, run)
    assert loaded.policy.first_stage.curves or len(loaded.policy.first_stage.chain) == 1
    model, _ = build_cascade(loaded, run, lambda _way: None)
    probe = probe_of(loaded, run)
    np.testing.assert_array_equal(model.follow(probe.x).answer, follow(loaded.tables, loaded.policy, probe.rows).answer)


def test_a_run_without_a_plan_is_an_error(tmp_path: Path) -> None:
    """Without training nothing is served, and the way there is named."""
    with pytest.raises(
        UnfoldError, match=r"the run has no plan: this cascade was not trained \(run unfold train SPEC"
    ) as caught:
        serve(spec_of(TUMOURS), run_in(tmp_path))
    assert caught.value.code == 2


def test_a_plan_of_another_spec_is_an_error(tumours: Any) -> None:
    """A spec that differs from the planned one is refused."""
    with pytest.raises(UnfoldError, match="the plan was made for another spec"):
        serve(spec_of(TUMOURS, "goal.max_loss=5%"), tumours[1])


def test_a_plan_of_another_run_is_an_error(tumours: Any) -> None:
    """A plan that is not on the front of the run is refused."""
    spec, run = tumours
    plan = run.options["plan"]
    steps = [
        step | {"cuts": [0.123] * len(step["cuts"]), "models": step["models"][::-1]}
        for step in plan["decision"]["cascade"]
    ]
    run = replace(run, options={"plan": plan | {"decision": plan["decision"] | {"cascade": steps}}})
    with pytest.raises(UnfoldError, match="not from this run"):
        serve(spec, run)


def test_another_seed_is_an_error(tumours: Any) -> None:
    """Models of another seed than the plan's are refused."""
    spec, run = tumours
    with pytest.raises(UnfoldError, match="has no model 'quick' of this spec, seed and library versions"):
        serve(spec, replace(run, options={"plan": run.options["plan"] | {"seed": 9}}))


def test_recorded_answers_are_not_served() -> None:
    """A cascade of recorded answers has no models to serve, which is said."""
    with pytest.raises(UnfoldError, match="recorded predictions cannot be served"):
        serve(spec_of(CONFIGS / "api-logs.yaml"), run_in(Path()))


@pytest.mark.parametrize("name", ["models/diagnosis/all/quick.skops", "front.json", "cases.npz", "serving/probe.npz"])
def test_a_changed_file_is_rejected(tumours: Any, tmp_path: Path, name: str) -> None:
    """A file of the run that was changed by a byte is named and not loaded."""
    spec, run = tumours[0], elsewhere(tumours[1], tmp_path)
    for kept in (tmp_path / "run" / "serving").rglob("*.onnx"):
        listed = run.directory.files()
        run.directory._save({key: entry for key, entry in listed.items() if not key.endswith(".onnx")})
        kept.unlink()
    file = tmp_path / "run" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UnfoldError, match=rf"{file.name}: the file was changed"):
        serve(spec, run)


def test_a_changed_onnx_file_is_rejected(tumours: Any, tmp_path: Path) -> None:
    """The converted models are held to their hashes too."""
    serve(*tumours)
    run = elsewhere(tumours[1], tmp_path)
    file = next((tmp_path / "run" / "serving").rglob("*.onnx"))
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(UnfoldError, match=r"\.onnx: the file was changed"):
        serve(tumours[0], run)


def test_models_that_answer_otherwise_than_the_plan_are_not_served(
    tumours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither converted nor native: the files of the run are at fault, and the error names their folder."""
    spec, run = tumours
    loaded = load_served(spec, run)
    monkeypatch.setattr("unfold_cascade.serving.service.count_deviations", lambda *_: 1)
    with pytest.raises(UnfoldError, match="predict differently than in planning") as caught:
        build_cascade(loaded, run, lambda _way: None)
    assert caught.value.code is ExitCode.USAGE
    assert caught.value.diagnostics[0].file == str(run.directory.path)
