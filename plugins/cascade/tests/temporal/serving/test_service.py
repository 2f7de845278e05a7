"""The server answers as the simulation does, through restarts and kill -9."""

from __future__ import annotations

import http.client
import itertools
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in
from tests.served import find_address
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.data.readers import read_long
from unfold_cascade.temporal.data.table import select_rows
from unfold_cascade.temporal.evaluation.baselines import decode_baseline
from unfold_cascade.temporal.evaluation.evaluate import Outcome
from unfold_cascade.temporal.models.study import Cohort, fit_study
from unfold_cascade.temporal.problem import LongSource
from unfold_cascade.temporal.serving.metrics import build_metrics
from unfold_cascade.temporal.serving.model import TemporalModel
from unfold_cascade.temporal.serving.plan_loader import LoadedPlan, load_temporal_plan
from unfold_cascade.temporal.serving.service import build_model, build_service, simulate_probe, verify_replay
from unfold_cascade.temporal.simulation.policy import StagePolicy, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import Trajectories, simulate
from unfoldkit.api import ExitCode, Run, RunDir, UnfoldError
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import read_document

COMMAND = (sys.executable, "-m", "unfoldkit")
WARDS = CONFIGS / "wards.yaml"
COLUMNS = ("Age", "HR", "Temp", "Resp", "WBC", "PaCO2")


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained run, its plan, and its test patients as simulated and as raw rows."""

    folder: Path
    run: Run
    plan: LoadedPlan
    test: Cohort
    x: Any
    names: tuple[str, ...]


def unfold(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], cwd=folder, capture_output=True, text=True, timeout=600, check=False)


def load_from(folder: Path) -> LoadedPlan:
    """Load the plan of a run as ``serve`` does."""
    spec: CascadeSpec = validate(CascadeSpec, read_document(str(folder / "spec.yaml")))
    run = run_in(folder)
    return load_temporal_plan(build_temporal_problem(spec, run), run, read_document(str(folder / "plan.yaml")).data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("timed")
    done = unfold(folder, "train", str(WARDS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("next: unfold serve runs/wards\n")
    run, plan = run_in(folder / "runs" / "wards"), load_from(folder / "runs" / "wards")
    assert isinstance(plan.problem.source, LongSource)
    table = read_long(CONFIGS / "wards.csv", plan.problem.source)
    entities = plan.study.rows.test
    rows = select_rows(table.starts, entities)
    x = table.values[np.ix_(rows, np.array([table.columns.index(name) for name in COLUMNS]))]
    names = tuple(table.ids[entity] for entity in entities)
    return Trained(folder, run, plan, fit_study(plan.problem, run).test, x.astype(np.float64), names)


def copy_run(trained: Trained, target: Path) -> None:
    """Copy the run without its stored states; relative paths keep their base."""
    shutil.copytree(trained.folder / "runs" / "wards", target, ignore=shutil.ignore_patterns("entities.*"))
    RunDir(target).write("origin.json", json.dumps({"base": str(CONFIGS)}).encode())


def simulate_plan(trained: Trained) -> Trajectories:
    """Simulate the plan on the test cohort."""
    plan, test = trained.plan, trained.test
    arrays = build_policy_arrays(plan.policy, plan.parallel)
    return simulate(test.timeline, test.scores, arrays, plan.problem.transitions)


def decode_plan_baseline(trained: Trained, plan: LoadedPlan) -> Outcome:
    """Decode the plan's baseline on the test cohort."""
    return decode_baseline(trained.test, plan.baseline, plan.problem.transitions, plan.call_costs)


def build_silent_model(plan: LoadedPlan, run: Run) -> TemporalModel:
    """Build the model of a plan with counters of its own."""
    from prometheus_client import CollectorRegistry

    return build_model(plan, run, build_metrics(plan, CollectorRegistry()))


@contextmanager
def serving(folder: Path, run: str = "runs/wards") -> Iterator[tuple[subprocess.Popen[str], Client]]:
    process = subprocess.Popen([*COMMAND, "serve", run, "--port", "0"], cwd=folder, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(100, process.kill)
    watchdog.start()
    try:
        assert process.stderr
        address = urllib.parse.urlsplit(find_address(process.stderr))
        assert address.hostname
        with closing(http.client.HTTPConnection(address.hostname, address.port, timeout=60)) as connection:
            yield process, Client(connection, run.rpartition("/")[2])
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


@dataclass(frozen=True, slots=True)
class Client:
    """Posts hours over one connection."""

    connection: http.client.HTTPConnection
    name: str

    def post(self, entity: str, time: int | None, x: Any) -> tuple[int, dict[str, Any]]:
        data = [None if np.isnan(value) else float(value) for value in np.ravel(x)]
        tensor = {"name": "x", "shape": list(np.atleast_2d(x).shape), "datatype": "FP64", "data": data}
        parameters = {"entity": entity} | ({} if time is None else {"time": time})
        body = json.dumps({"inputs": [tensor], "parameters": parameters})
        self.connection.request("POST", f"/v2/models/{self.name}/infer", body)
        reply = self.connection.getresponse()
        return reply.status, json.loads(reply.read())

    def hours(self, entity: str, time: int | None, x: Any) -> dict[str, list[Any]]:
        status, answer = self.post(entity, time, x)
        assert status == 200, answer
        return {output["name"]: output["data"] for output in answer["outputs"]}

    def metrics(self) -> Mapping[str, float]:
        self.connection.request("GET", "/metrics")
        lines = self.connection.getresponse().read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


def list_requests(trained: Trained) -> list[tuple[int, int, int]]:
    """List (entity, begin, end) of one to three consecutive hours: 16 entities mixed, each in order."""
    rng, found = np.random.default_rng(5), list[tuple[float, int, int, int]]()
    starts, hour = trained.test.timeline.starts[:17], trained.test.timeline.hour
    for entity, (row, end) in enumerate(itertools.pairwise(starts)):
        begin = row
        while begin < end:
            stop = begin + 1
            while stop < end and stop < begin + rng.integers(1, 4) and hour[stop] == hour[stop - 1] + 1:
                stop += 1
            found.append((float(begin - row) + rng.random(), entity, int(begin), int(stop)))
            begin = stop
    return [item[1:] for item in sorted(found)]


@pytest.mark.e2e
def test_server_equals_the_simulation(trained: Trained) -> None:
    """Through a stop and a kill -9, stage, calls and price of mixed test hours equal the simulation."""
    expected, requests = simulate_plan(trained), list_requests(trained)
    rows = int(trained.test.timeline.starts[16])
    stage, price, asked = np.full(rows, -1), np.zeros(16), np.zeros((rows, 2), dtype=np.int64)
    third = len(requests) // 3
    total = 0.0
    for cohort, end in enumerate((signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)):
        with serving(trained.folder) as (process, client):
            for entity, begin, stop in requests[cohort * third : (cohort + 1) * third if cohort < 2 else None]:
                time = int(trained.test.timeline.hour[begin])
                found = client.hours(trained.names[entity], time, trained.x[begin:stop])
                stage[begin:stop] = found["stage"]
                price[entity] += sum(found["price"])
                width = len(found["route_stage"]) // (stop - begin)
                names = np.array(found["route_stage"]).reshape(stop - begin, -1)
                asked[begin:stop] = np.stack([(names == name).sum(axis=1) for name in ("sirs", "sepsis")], axis=1)
                assert width in (1, 3)
                assert found["time"] == list(range(time, time + stop - begin))
            total += client.metrics()["unfold_cascade_price_total"]
            process.send_signal(end)
            process.wait(30)
            assert process.returncode == (-9 if end is signal.SIGKILL else 0)
    np.testing.assert_array_equal(stage, expected.stage[:rows])
    np.testing.assert_array_equal(asked, expected.evaluated[:rows])
    np.testing.assert_allclose(price, expected.purchases[:16] @ trained.plan.purchase.price)
    assert total == pytest.approx(price.sum())


@pytest.mark.e2e
def test_late_hours_are_rejected_and_repeated_hours_correct(trained: Trained) -> None:
    """An hour before the last gets 409; the last hour sent again gets the same answer, or corrects the state."""
    hours = trained.x[:4]
    wrong = hours[2] + np.array([0, 60, 3, 20, 0, 0])
    with serving(trained.folder) as (_, client):
        plain = [client.hours("plain", 1 + at, hours[at]) for at in range(4)]
        for at in (0, 1):
            client.hours("mended", 1 + at, hours[at])
        client.hours("mended", 3, wrong)
        assert client.hours("mended", 3, hours[2]) == plain[2]
        assert client.hours("mended", 3, hours[2]) == plain[2]
        status, reply = client.post("mended", 2, hours[1])
        assert (status, reply["error"]) == (409, "time 2 of 'mended' is late: time 3 was answered")
        assert client.hours("mended", None, hours[3]) == plain[3]
        assert client.post("", None, hours[0])[0] == 400
        other = client.hours("gap", 1, hours[0]) and client.hours("gap", 90, hours[1])
        assert other["time"] == [90]


@pytest.mark.slow
def test_batched_entities_are_answered_as_alone(trained: Trained) -> None:
    """In a batch, an hour gets the same stage and the same calls as alone."""
    model = build_silent_model(trained.plan, trained.run)
    starts, hour = trained.test.timeline.starts, trained.test.timeline.hour
    cases: list[Any] = [None] * 12
    expected = simulate_plan(trained)
    for step in range(8):
        rows = starts[:12] + step
        hours, cases = model.advance(trained.x[rows], hour[rows], cases)
        assert [result.stage for result in hours] == expected.stage[rows].tolist()
        assert [sum(call.stage == 0 for call in result.calls) for result in hours] == expected.evaluated[
            rows, 0
        ].tolist()


def test_owned_cuts_apply_while_serving(trained: Trained) -> None:
    """Hour by hour, gates that defer more where nothing is bought make the calls and purchases of the simulation."""
    names = [slot.place for slot in trained.plan.slots]
    ward, chart, glance, full = map(names.index, ("sirs/ward", "sirs/chart", "sepsis/glance", "sepsis/full"))
    first = StagePolicy((ward, chart), ((0.4, 0.5),), 0.5, ((0.1, 0.9),))
    final = StagePolicy((glance, full), ((0.1, np.inf),), 0.1, ((-np.inf, np.inf),))
    plan = replace(trained.plan, policy=(first, final))
    verify_replay(plan, build_silent_model(plan, trained.run), trained.run)
    plain = replace(plan, policy=(replace(first, owned=()), replace(final, owned=())))
    calls = [simulate_probe(variant).trajectories.calls.sum(axis=0)[[chart, full]] for variant in (plan, plain)]
    assert (calls[0] > calls[1]).all()


def test_plans_contain_owned_cuts(trained: Trained) -> None:
    """A plan's owned cuts are read back; a wrong number of spans is an error."""
    plan = trained.plan
    document = read_document(str(trained.folder / "runs" / "wards" / "plan.yaml")).data
    gate = {"models": ["ward", "chart"], "unsure": [[0.4, 0.5]], "unsure_owned": [["always", 0.9]], "cut": 0.5}
    steps = [{"stage": "sirs", **gate}, document["decision"]["cascade"][1]]
    changed = document | {"decision": document["decision"] | {"cascade": steps}}
    assert load_temporal_plan(plan.problem, trained.run, changed).policy[0].owned == ((-np.inf, 0.9),)
    steps[0]["unsure_owned"] = [["always", 0.9], ["always", 0.9]]
    with pytest.raises(UnfoldError, match=r"plan\.yaml: not the plan of this run: a span for each model but the last"):
        load_temporal_plan(plan.problem, trained.run, changed)


@pytest.mark.parametrize(
    "seed", [None, "x", float("inf"), "9" * 5000, ...], ids=["null", "text", "inf", "long", "none"]
)
def test_plans_without_a_seed_are_rejected(trained: Trained, seed: object) -> None:
    """A damaged plan is named, with exit code 2."""
    document = dict(read_document(str(trained.folder / "runs" / "wards" / "plan.yaml")).data)
    changed = document | {"seed": seed}
    if seed is ...:
        del changed["seed"]
    with pytest.raises(UnfoldError, match=r"plan\.yaml: not the plan of this run") as error:
        load_temporal_plan(trained.plan.problem, trained.run, changed)
    assert error.value.code == ExitCode.USAGE


def test_plans_with_numbers_beyond_floats_are_rejected(trained: Trained) -> None:
    """A cut of hundreds of digits is a damaged plan, not an internal error."""
    document = read_document(str(trained.folder / "runs" / "wards" / "plan.yaml")).data
    monolith = document["decision"]["monolith"] | {"cut": 10**400}
    changed = document | {"decision": document["decision"] | {"monolith": monolith}}
    with pytest.raises(UnfoldError, match=r"plan\.yaml: not the plan of this run"):
        load_temporal_plan(trained.plan.problem, trained.run, changed)


def test_audits_report_the_baseline_stage(trained: Trained) -> None:
    """With every entity audited, every hour carries the baseline's stage, as its simulation decodes it."""
    plan = trained.plan
    model = build_silent_model(plan, trained.run)
    model = replace(model, baseline=replace(model.baseline, audit_share=1.0))
    base = decode_plan_baseline(trained, plan)
    expected = simulate_plan(trained)
    for begin, end in zip(trained.test.timeline.starts[:10], trained.test.timeline.starts[1:11], strict=True):
        case = None
        for row in range(begin, end):
            hours, cases = model.advance(trained.x[row : row + 1], trained.test.timeline.hour[row : row + 1], [case])
            case = cases[0]
            assert (hours[0].audited, hours[0].baseline_stage, hours[0].stage) == (
                True,
                base.stage[row],
                expected.stage[row],
            )


def test_audits_are_reproducible_and_meet_their_share(trained: Trained) -> None:
    """The draw depends on the first hour alone and meets the audit share."""
    model = build_silent_model(trained.plan, trained.run)
    model = replace(model, baseline=replace(model.baseline, audit_share=0.3))
    rng = np.random.default_rng(1)
    x = np.column_stack([rng.integers(20, 90, 600), rng.normal(80, 9, (600, 3)), np.full((600, 2), np.nan)])
    audited = [case.audited for case in model.advance(x, np.zeros(600), [None] * 600)[1]]
    assert audited == [case.audited for case in model.advance(x[:, :], np.ones(600), [None] * 600)[1]]
    assert 0.2 < np.mean(audited) < 0.4
    unknown = [case.audited for case in model.advance(np.full_like(x, np.nan), np.zeros(600), [None] * 600)[1]]
    assert 0.2 < np.mean(unknown) < 0.4, "an hour without values is audited by chance, not always or never"


def test_native_engine_decides_near_a_cut(trained: Trained) -> None:
    """A fast engine that is off by less than the margin changes no verdict."""
    plan = trained.plan
    model = build_silent_model(plan, trained.run)
    shifted = {}
    for number, served in model.served_models.items():
        spans = [stage.spans[stage.chain.index(number)] for stage in model.policy if number in stage.chain]

        def predict_shifted(x: Any, served: Any = served, cut: float = spans[0][0]) -> Any:
            p = served.fast.predict(x)
            return p - 1e-5 * np.sign(p[:, -1:] - cut)

        shifted[number] = replace(served, fast=replace(served.fast, predict=predict_shifted))
    verify_replay(plan, replace(model, served_models=shifted), trained.run)


def test_deviating_models_are_not_served(trained: Trained) -> None:
    """If a stage, a call or a purchase differs on the probe, nothing is served."""
    plan = trained.plan
    model = build_silent_model(plan, trained.run)
    verify_replay(plan, model, trained.run)
    other = replace(model, policy=tuple(replace(stage, parallel=True) for stage in model.policy[::-1]))
    with pytest.raises(UnfoldError, match="behave differently from its plan") as caught:
        verify_replay(plan, other, trained.run)
    assert caught.value.code is ExitCode.USAGE
    assert caught.value.diagnostics[0].file == str(trained.run.directory.path)


@pytest.mark.e2e
def test_baseline_is_served_without_a_certificate(trained: Trained, tmp_path: Path) -> None:
    """Without a certified cascade the latched baseline answers."""
    copy_run(trained, tmp_path / "runs" / "wards")
    done = unfold(tmp_path, "plan", "runs/wards", "--set", "goal.max_loss=0.01%")
    assert done.returncode == 1, done.stderr
    plan = load_from(tmp_path / "runs" / "wards")
    base = decode_plan_baseline(trained, plan)
    end = int(trained.test.timeline.starts[3])
    with serving(tmp_path) as (_, client):
        stage = []
        for entity in range(3):
            rows = range(*trained.test.timeline.starts[entity : entity + 2])
            for row in rows:
                found = client.hours(trained.names[entity], int(trained.test.timeline.hour[row]), trained.x[row])
                stage += found["stage"]
    assert stage == base.stage[:end].tolist()


@pytest.mark.e2e
def test_states_of_another_plan_are_rejected(trained: Trained, tmp_path: Path) -> None:
    """States of another plan are not read: serve exits with 2 and names the file to delete."""
    copy_run(trained, tmp_path / "wards")
    with serving(tmp_path, "wards") as (_, client):
        client.hours("one", 1, trained.x[0])
    assert unfold(tmp_path, "plan", "wards", "--set", "goal.max_loss=25%").returncode == 0
    done = unfold(tmp_path, "serve", "wards", "--port", "0")
    assert done.returncode == 2
    assert "another plan wrote these entity states" in done.stderr


def test_states_behind_a_link_out_of_the_run_are_rejected(trained: Trained, tmp_path: Path) -> None:
    """A database elsewhere that a link in the run leads to is left as it is."""
    copy_run(trained, tmp_path / "wards")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE cookies (name)")
    content = (tmp_path / "other.db").read_bytes()
    (tmp_path / "wards" / "serving" / "entities.sqlite").symlink_to(tmp_path / "other.db")
    run = replace(trained.run, directory=RunDir(tmp_path / "wards"))
    with pytest.raises(UnfoldError, match=r"'serving/entities\.sqlite' is outside of the run"):
        build_service(trained.plan, run)
    assert (tmp_path / "other.db").read_bytes() == content


@pytest.mark.e2e
def test_untrained_cascades_are_not_served(tmp_path: Path) -> None:
    """Without training, serve exits with 2 and a hint."""
    done = unfold(tmp_path, "serve", str(WARDS), "--port", "0")
    assert done.returncode == 2
    assert "this cascade was not trained" in done.stderr


def test_runs_without_a_probe_are_not_served(trained: Trained, tmp_path: Path) -> None:
    """A run with missing files is an error with a hint, not a traceback."""
    shutil.copytree(trained.folder / "runs" / "wards", tmp_path / "run")
    (tmp_path / "run" / "serving" / "probe.npz").unlink()
    run = replace(trained.run, directory=RunDir(tmp_path / "run"))
    with pytest.raises(UnfoldError, match="no probe of held-out hours"):
        load_temporal_plan(trained.plan.problem, run, read_document(str(tmp_path / "run" / "plan.yaml")).data)
