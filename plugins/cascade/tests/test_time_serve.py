"""Laws of serving over time: what the server answers is what the simulation does, through restarts and kill -9."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.temporal.data.readers import read_long
from unfold_cascade.temporal.data.table import rows_of
from unfold_cascade.temporal.evaluation.monolith import decoded
from unfold_cascade.temporal.models.study import Part, stored, study
from unfold_cascade.temporal.serving import service
from unfold_cascade.temporal.serving.metrics import counts
from unfold_cascade.temporal.serving.plan_loader import Loaded, load
from unfold_cascade.temporal.serving.service import check, timed
from unfold_cascade.temporal.simulation.policy import Step, ladder
from unfold_cascade.temporal.simulation.trajectories import Walk, walk
from unfoldkit.api import RunDir, UnfoldError
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import read_document

COMMAND = (sys.executable, "-m", "unfoldkit")
WARDS = CONFIGS / "wards.yaml"
COLUMNS = ("Age", "HR", "Temp", "Resp", "WBC", "PaCO2")


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained run, its test patients (as simulated, and as raw rows), and what its plan does with them."""

    folder: Path
    loaded: Loaded
    test: Part
    x: Any
    names: tuple[str, ...]


def unfold(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], cwd=folder, capture_output=True, text=True, timeout=600, check=False)


def loaded_of(folder: Path) -> Loaded:
    spec: CascadeSpec = validate(CascadeSpec, read_document(str(folder / "spec.yaml")))
    plan = read_document(str(folder / "plan.yaml")).data
    return load(spec, run_in(folder), plan)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("timed")
    done = unfold(folder, "train", str(WARDS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("next: unfold serve runs/wards\n")
    loaded = loaded_of(folder / "runs" / "wards")
    table = read_long(CONFIGS / "wards.csv", loaded.spec.data)  # type: ignore[arg-type]
    entities = stored(loaded.spec, loaded.run).rows.test
    rows = rows_of(table.starts, entities)
    x = table.values[np.ix_(rows, np.array([table.columns.index(name) for name in COLUMNS]))]
    names = tuple(table.ids[entity] for entity in entities)
    return Trained(folder, loaded, study(loaded.spec, loaded.run).test, x.astype(np.float64), names)


def copied(trained: Trained, place: Path) -> None:
    """Copy the run, without what a server remembers; its paths start where they did."""
    shutil.copytree(trained.folder / "runs" / "wards", place, ignore=shutil.ignore_patterns("entities.*"))
    RunDir(place).write("origin.json", json.dumps({"base": str(CONFIGS)}).encode())


def simulated(trained: Trained) -> Walk:
    loaded = trained.loaded
    return walk(trained.test.clock, trained.test.zoo, ladder(loaded.policy, loaded.parallel), loaded.moves)


@contextmanager
def serving(folder: Path, what: str = "runs/wards") -> Iterator[tuple[subprocess.Popen[str], Asker]]:
    process = subprocess.Popen([*COMMAND, "serve", what, "--port", "0"], cwd=folder, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(100, process.kill)
    watchdog.start()
    try:
        assert process.stderr
        first = process.stderr.readline()
        found = re.search(r" on http://([\d.]+):(\d+) · run ", first)
        assert found, first + process.stderr.read()
        with closing(http.client.HTTPConnection(found[1], int(found[2]), timeout=60)) as connection:
            yield process, Asker(connection, what.rpartition("/")[2])
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


@dataclass(frozen=True, slots=True)
class Asker:
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


def pieces(trained: Trained) -> list[tuple[int, int, int]]:
    """Return (entity, begin, end) of one to three consecutive hours each, of 16 entities mixed, each in its order."""
    rng, found = np.random.default_rng(5), list[tuple[float, int, int, int]]()
    starts, hour = trained.test.clock.starts[:17], trained.test.clock.hour
    for entity, (row, end) in enumerate(itertools.pairwise(starts)):
        begin = row
        while begin < end:
            stop = begin + 1
            while stop < end and stop < begin + rng.integers(1, 4) and hour[stop] == hour[stop - 1] + 1:
                stop += 1
            found.append((float(begin - row) + rng.random(), entity, int(begin), int(stop)))
            begin = stop
    return [item[1:] for item in sorted(found)]


def test_the_server_answers_what_the_simulation_does(trained: Trained) -> None:
    """All hours of test patients, mixed, through a stop and a kill -9: stage, calls and price are the simulated."""
    went, todo = simulated(trained), pieces(trained)
    rows = int(trained.test.clock.starts[16])
    stage, price, asked = np.full(rows, -1), np.zeros(16), np.zeros((rows, 2), dtype=np.int64)
    third = len(todo) // 3
    total = 0.0
    for part, end in enumerate((signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)):
        with serving(trained.folder) as (process, asker):
            for entity, begin, stop in todo[part * third : (part + 1) * third if part < 2 else None]:
                time = int(trained.test.clock.hour[begin])
                found = asker.hours(trained.names[entity], time, trained.x[begin:stop])
                stage[begin:stop] = found["stage"]
                price[entity] += sum(found["price"])
                width = len(found["route_stage"]) // (stop - begin)
                names = np.array(found["route_stage"]).reshape(stop - begin, -1)
                asked[begin:stop] = np.stack([(names == name).sum(axis=1) for name in ("sirs", "sepsis")], axis=1)
                assert width in (1, 3)
                assert found["time"] == list(range(time, time + stop - begin))
            total += asker.metrics()["unfold_cascade_price_total"]
            process.send_signal(end)
            process.wait(30)
            assert process.returncode == (-9 if end is signal.SIGKILL else 0)
    np.testing.assert_array_equal(stage, went.answer[:rows])
    np.testing.assert_array_equal(asked, went.asked[:rows])
    np.testing.assert_allclose(price, went.buys[:16] @ trained.loaded.purchase.price)
    assert total == pytest.approx(price.sum())


def test_a_late_hour_is_refused_and_a_repeated_one_corrects(trained: Trained) -> None:
    """An hour before the last is 409; the last one sent again is answered alike, or corrects what is remembered."""
    hours = trained.x[:4]
    wrong = hours[2] + np.array([0, 60, 3, 20, 0, 0])
    with serving(trained.folder) as (_, asker):
        plain = [asker.hours("plain", 1 + at, hours[at]) for at in range(4)]
        for at in (0, 1):
            asker.hours("mended", 1 + at, hours[at])
        asker.hours("mended", 3, wrong)
        assert asker.hours("mended", 3, hours[2]) == plain[2]
        assert asker.hours("mended", 3, hours[2]) == plain[2]
        status, told = asker.post("mended", 2, hours[1])
        assert (status, told["error"]) == (409, "time 2 of 'mended' is late: time 3 was answered")
        assert asker.hours("mended", None, hours[3]) == plain[3]
        assert asker.post("", None, hours[0])[0] == 400
        other = asker.hours("gap", 1, hours[0]) and asker.hours("gap", 90, hours[1])
        assert other["time"] == [90]


def test_cases_in_company_are_answered_as_alone(trained: Trained) -> None:
    """Batched with others, an hour gets the stage, the route and the price that it gets alone."""
    model = timed(trained.loaded, silent(trained.loaded))
    starts, hour = trained.test.clock.starts, trained.test.clock.hour
    cases: list[Any] = [None] * 12
    went = simulated(trained)
    for step in range(8):
        rows = starts[:12] + step
        hours, cases = model.follow(trained.x[rows], hour[rows], cases)
        assert [done.stage for done in hours] == went.answer[rows].tolist()
        assert [sum(item.stage == 0 for item in done.heard) for done in hours] == went.asked[rows, 0].tolist()


def test_what_is_owned_is_known_while_serving(trained: Trained) -> None:
    """Served hour by hour, gates that ask more readily where nothing is bought ask and buy what the simulation does."""
    names = [slot.place for slot in trained.loaded.places]
    ward, chart, glance, full = map(names.index, ("sirs/ward", "sirs/chart", "sepsis/glance", "sepsis/full"))
    first = Step((ward, chart), ((0.4, 0.5),), 0.5, ((0.1, 0.9),))
    last = Step((glance, full), ((0.1, np.inf),), 0.1, ((-np.inf, np.inf),))
    loaded = replace(trained.loaded, policy=(first, last))
    check(loaded, timed(loaded, silent(loaded)))
    plain = replace(loaded, policy=(replace(first, owned=()), replace(last, owned=())))
    calls = [service.simulated(one)[1].calls.sum(axis=0)[[chart, full]] for one in (loaded, plain)]
    assert (calls[0] > calls[1]).all()


def test_a_plan_tells_the_cuts_for_what_is_owned(trained: Trained) -> None:
    """A plan's cuts for what is owned are read back; a span too few is refused."""
    loaded = trained.loaded
    plan = read_document(str(trained.folder / "runs" / "wards" / "plan.yaml")).data
    gate = {"models": ["ward", "chart"], "unsure": [[0.4, 0.5]], "unsure_owned": [["always", 0.9]], "cut": 0.5}
    steps = [{"stage": "sirs", **gate}, plan["decision"]["cascade"][1]]
    changed = plan | {"decision": plan["decision"] | {"cascade": steps}}
    assert load(loaded.spec, loaded.run, changed).policy[0].owned == ((-np.inf, 0.9),)
    steps[0]["unsure_owned"] = [["always", 0.9], ["always", 0.9]]
    with pytest.raises(UnfoldError, match="the plan is not of this run"):
        load(loaded.spec, loaded.run, changed)


def silent(loaded: Loaded) -> Any:
    from prometheus_client import CollectorRegistry

    return counts(loaded, CollectorRegistry())


def test_audited_cases_differ_where_the_monolith_does(trained: Trained) -> None:
    """With every case audited, the monolith's stage is told for every hour, as the simulation of it decodes it."""
    loaded = trained.loaded
    model = timed(loaded, silent(loaded))
    model = replace(model, monolith=replace(model.monolith, share=1.0))
    base = decoded(trained.test, loaded.monolith, loaded.moves, loaded.rates)
    went = simulated(trained)
    for begin, end in zip(trained.test.clock.starts[:10], trained.test.clock.starts[1:11], strict=True):
        case = None
        for row in range(begin, end):
            hours, cases = model.follow(trained.x[row : row + 1], trained.test.clock.hour[row : row + 1], [case])
            case = cases[0]
            assert (hours[0].audited, hours[0].other, hours[0].stage) == (True, base.answer[row], went.answer[row])


def test_a_share_of_the_cases_is_audited(trained: Trained) -> None:
    """The draw depends on the first hour alone, and hits the share that was asked for."""
    model = timed(trained.loaded, silent(trained.loaded))
    model = replace(model, monolith=replace(model.monolith, share=0.3))
    rng = np.random.default_rng(1)
    x = np.column_stack([rng.integers(20, 90, 600), rng.normal(80, 9, (600, 3)), np.full((600, 2), np.nan)])
    drawn = [case.audited for case in model.follow(x, np.zeros(600), [None] * 600)[1]]
    assert drawn == [case.audited for case in model.follow(x[:, :], np.ones(600), [None] * 600)[1]]
    assert 0.2 < np.mean(drawn) < 0.4


def test_near_a_cut_the_native_model_decides(trained: Trained) -> None:
    """A quick model that is off by less than the margin changes no verdict."""
    loaded = trained.loaded
    model = timed(loaded, silent(loaded))
    off = {}
    for number, voice in model.voices.items():
        cuts = np.array([rung.spans[rung.chain.index(number)] for rung in model.ladder if number in rung.chain])

        def shifted(x: Any, voice: Any = voice, cuts: Any = cuts) -> Any:
            p = voice.quick.predict(x)
            side = np.sign(p[:, -1:] - cuts[0, 0])
            return p - 1e-5 * side

        off[number] = replace(voice, quick=replace(voice.quick, predict=shifted))
    check(loaded, replace(model, voices=off))


def test_a_model_that_goes_astray_is_not_served(trained: Trained) -> None:
    """If a stage, a call or a purchase differs on the cases set aside, nothing is served."""
    loaded = trained.loaded
    model = timed(loaded, silent(loaded))
    check(loaded, model)
    other = replace(model, ladder=tuple(replace(rung, parallel=True) for rung in model.ladder[::-1]))
    with pytest.raises(UnfoldError, match="answer otherwise than when it was planned"):
        check(loaded, other)


def test_without_a_promise_the_monolith_is_served(trained: Trained, tmp_path: Path) -> None:
    """Where nothing is certified the monolith answers, with its memory of the stage, at its price."""
    copied(trained, tmp_path / "runs" / "wards")
    done = unfold(tmp_path, "plan", "runs/wards", "--set", "goal.max_loss=0.01%")
    assert done.returncode == 1, done.stderr
    loaded = loaded_of(tmp_path / "runs" / "wards")
    base = decoded(trained.test, loaded.monolith, loaded.moves, loaded.rates)
    end = int(trained.test.clock.starts[3])
    with serving(tmp_path) as (_, asker):
        stage = []
        for entity in range(3):
            rows = range(*trained.test.clock.starts[entity : entity + 2])
            for row in rows:
                found = asker.hours(trained.names[entity], int(trained.test.clock.hour[row]), trained.x[row])
                stage += found["stage"]
    assert stage == base.answer[:end].tolist()


def test_a_memory_of_another_plan_is_refused(trained: Trained, tmp_path: Path) -> None:
    """States that another plan left are not read: serve ends with 2 and names the file to delete."""
    copied(trained, tmp_path / "wards")
    with serving(tmp_path, "wards") as (_, asker):
        asker.hours("one", 1, trained.x[0])
    assert unfold(tmp_path, "plan", "wards", "--set", "goal.max_loss=25%").returncode == 0
    done = unfold(tmp_path, "serve", "wards", "--port", "0")
    assert done.returncode == 2
    assert "what is remembered here was kept by another plan" in done.stderr


def test_an_untrained_cascade_over_time_is_not_served(tmp_path: Path) -> None:
    """Without training, serve ends with 2 and says what to do."""
    done = unfold(tmp_path, "serve", str(WARDS), "--port", "0")
    assert done.returncode == 2
    assert "this cascade was not trained" in done.stderr


def test_a_run_without_its_hours_is_not_served(trained: Trained, tmp_path: Path) -> None:
    """A run whose files are gone is told with what to do, not with a traceback."""
    shutil.copytree(trained.folder / "runs" / "wards", tmp_path / "run")
    (tmp_path / "run" / "serving" / "probe.npz").unlink()
    run = replace(trained.loaded.run, directory=RunDir(tmp_path / "run"))
    with pytest.raises(UnfoldError, match="no hours that were set aside"):
        load(trained.loaded.spec, run, read_document(str(tmp_path / "run" / "plan.yaml")).data)
