"""Models that remember: late, repeated and out-of-order hours have a defined answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.serving.models import Diary
from unfoldkit.serving.model import Batch, Call, Field, Predictions, make_blank_batch
from unfoldkit.serving.state.entity_model import EntityStateModel, group_waves, order_rows
from unfoldkit.serving.state.store import open_store

Hour = tuple[str, int | None, list[float]]


@pytest.fixture
def model(tmp_path: Path) -> Any:
    store = open_store(tmp_path / "s.db", made_from="diary")
    yield EntityStateModel(Diary(), store)
    store.close()


def batch(*calls: Hour) -> Batch:
    values = [value for _, _, values in calls for value in values]
    return Batch({"x": np.array(values)}, tuple(Call(len(values), who, when) for who, when, values in calls))


def seen(answers: Predictions) -> list[Any]:
    return [json.loads(text) for text in np.asarray(answers.columns["seen"]).tolist()]


def diary(model: EntityStateModel, who: str) -> Any:
    return json.loads(model.store.read([who])[who].now.data)


def test_hours_build_on_each_other(model: EntityStateModel) -> None:
    """Each hour of an entity sees those before it, and entities do not see each other."""
    model.predict(batch(("p", 0, [1.0]), ("q", 0, [9.0])))
    found = model.predict(batch(("p", 1, [2.0])))
    assert seen(found) == [[[0, 1.0], [1, 2.0]]]
    assert diary(model, "q") == [[0, 9.0]]


def test_a_gap_is_passed_to_the_model(model: EntityStateModel) -> None:
    """An hour after a gap is taken, and the model knows how many are missing."""
    model.predict(batch(("p", 0, [1.0])))
    assert np.asarray(model.predict(batch(("p", 5, [2.0]))).columns["gap"]).tolist() == [4]


def test_a_repeated_hour_gets_the_same_answer(model: EntityStateModel) -> None:
    """An hour that is sent again is answered again from what was known before it; a correction replaces it."""
    model.predict(batch(("p", 0, [1.0])))
    first = seen(model.predict(batch(("p", 1, [2.0]))))
    assert seen(model.predict(batch(("p", 1, [2.0])))) == first
    assert seen(model.predict(batch(("p", 1, [3.0])))) == [[[0, 1.0], [1, 3.0]]]
    assert diary(model, "p") == [[0, 1.0], [1, 3.0]]
    assert seen(model.predict(batch(("q", 4, [1.0]), ("q", 4, [2.0]))))[1] == [[4, 2.0]]


def test_a_late_hour_is_refused_and_changes_nothing(model: EntityStateModel) -> None:
    """An hour before the last one is refused with 409 and both times, alone of its batch."""
    model.predict(batch(("p", 3, [1.0])))
    found = model.predict(batch(("p", 2, [5.0]), ("q", 0, [7.0])))
    assert {index: refusal.status for index, refusal in found.refused.items()} == {0: 409}
    assert found.refused[0].message == "time 2 of 'p' is late: time 3 was answered"
    assert diary(model, "p") == [[3, 1.0]]
    assert seen(found)[1] == [[0, 7.0]]


def test_no_time_means_the_next_hour(model: EntityStateModel) -> None:
    """Calls without a time take the hours one after the other, from 0."""
    model.predict(batch(("p", None, [1.0, 2.0])))
    found = model.predict(batch(("p", None, [3.0])))
    assert np.asarray(found.columns["time"]).tolist() == [2]


def test_the_next_hour_is_an_hour_later_whatever_time_is_counted_in(model: EntityStateModel) -> None:
    """Where an hour is 3600, rows without a time of their own are 3600 apart, in a request and between requests."""
    seconds = replace(model, hour=3600)
    seconds.predict(batch(("p", 7200, [1.0, 2.0])))
    found = seconds.predict(batch(("p", None, [3.0]), ("q", None, [4.0, 5.0])))
    assert np.asarray(found.columns["time"]).tolist() == [14400, 0, 3600]


@pytest.mark.parametrize(("hour", "first", "far"), [(1, 1_700_000_000, 90_000), (3600, 1_700_000_000_000, 4 * 10**8)])
def test_a_time_in_another_unit_locks_no_entity(model: EntityStateModel, hour: int, first: int, far: int) -> None:
    """After a row in a far future, all rows to come would be late."""
    counting = replace(model, hour=hour)
    assert counting.predict(batch(("p", first, [1.0]))).refused[0].status == 400
    counting.predict(batch(("p", 0, [1.0])))
    found = counting.predict(batch(("p", far, [2.0]), ("p", hour, [3.0])))
    assert found.refused[0].status == 400
    assert f"time {far} of 'p' is more than ten years after time {hour}" in found.refused[0].message
    assert diary(model, "p") == [[0, 1.0], [hour, 3.0]]
    assert not counting.predict(batch(("p", 5 * 8766 * hour, [4.0]))).refused


def test_only_calls_with_large_values_are_refused(model: EntityStateModel) -> None:
    """Their rows would spoil the state of their entity; other calls of the batch are answered."""
    careful = replace(model, stepper=replace(model.stepper, inputs=(Field("x", "FP64", (1,)),)), largest=1e30)
    values = np.array([[1.0], [-1e31], [3.0]])
    found = careful.predict(Batch({"x": values}, (Call(1, "p", 0), Call(1, "p", 1), Call(1, "p", 2))))
    assert {index: refusal.status for index, refusal in found.refused.items()} == {1: 400}
    assert diary(model, "p") == [[0, [1.0]], [2, [3.0]]]


@dataclass
class Interrupted:
    """A diary during whose first step ``meanwhile`` happens."""

    meanwhile: Callable[[], object] | None
    inner: Diary = field(default_factory=Diary)

    def step(self, *arguments: Any) -> Any:
        if (meanwhile := self.meanwhile) is not None:
            self.meanwhile = None
            meanwhile()
        return self.inner.step(*arguments)


@pytest.fixture
def other(model: EntityStateModel) -> Any:
    """The model in another process, which waits for no lock."""
    store = open_store(model.store.file, made_from="diary")
    store.connection.execute("PRAGMA busy_timeout=0")
    yield EntityStateModel(Diary(), store)
    store.close()


def test_a_long_request_keeps_no_other_process_waiting(model: EntityStateModel, other: EntityStateModel) -> None:
    """While one process computes, another serves other entities."""
    interrupted = Interrupted(lambda: other.predict(batch(("q", 0, [9.0]))))
    found = replace(model, stepper=interrupted).predict(batch(("p", 0, [1.0, 2.0])))
    assert seen(found) == [[[0, 1.0]], [[0, 1.0], [1, 2.0]]]
    assert diary(model, "q") == [[0, 9.0]]


def test_rows_of_two_processes_for_one_entity_build_on_each_other(
    model: EntityStateModel, other: EntityStateModel
) -> None:
    """A row that another process has stored meanwhile is seen, and a time that it has passed is late."""
    model.predict(batch(("p", 0, [1.0])))
    interrupted = Interrupted(lambda: other.predict(batch(("p", 1, [2.0]))))
    assert seen(replace(model, stepper=interrupted).predict(batch(("p", None, [3.0])))) == [
        [[0, 1.0], [1, 2.0], [2, 3.0]]
    ]
    interrupted = Interrupted(lambda: other.predict(batch(("p", 5, [4.0]))))
    found = replace(model, stepper=interrupted).predict(batch(("p", 3, [9.0])))
    assert found.refused[0].status == 409
    assert diary(model, "p") == [[0, 1.0], [1, 2.0], [2, 3.0], [5, 4.0]]


def test_an_entity_is_needed(model: EntityStateModel) -> None:
    """A call that names no entity is refused, and warming up keeps nothing."""
    assert model.predict(batch(("", None, [1.0]))).refused[0].status == 400
    model.predict(make_blank_batch(model, 7))
    assert model.store.count() == 0


HOURS = st.lists(st.tuples(st.sampled_from("pq"), st.integers(0, 9), st.integers(1, 3)), min_size=1, max_size=8)


@given(hours=HOURS)
def test_a_batch_is_as_its_calls_in_order_of_time(tmp_path_factory: pytest.TempPathFactory, hours: Any) -> None:
    """Calls of one batch leave what they leave when sent one by one, sorted by time."""
    calls: list[Hour] = [
        (who, when, [float(10 * n + k) for k in range(rows)]) for n, (who, when, rows) in enumerate(hours)
    ]
    folder = tmp_path_factory.mktemp("order")
    together, alone = (EntityStateModel(Diary(), open_store(folder / name, made_from="d")) for name in ("a", "b"))
    found = together.predict(batch(*calls))
    refused = {
        n for n in sorted(range(len(calls)), key=lambda n: calls[n][1] or 0) if alone.predict(batch(calls[n])).refused
    }
    assert set(found.refused) == refused
    for who in {who for who, _, _ in calls}:
        assert together.store.read([who]) == alone.store.read([who])
    together.store.close()
    alone.store.close()


@given(hours=HOURS)
def test_waves_hold_each_entity_once(hours: Any) -> None:
    """Every row that is taken is in exactly one wave, an entity at most once a wave, its times never falling."""
    rows, _ = order_rows([Call(rows, who, when) for who, when, rows in hours], {})
    found = group_waves(rows)
    assert sorted(row.index for wave in found for row in wave) == sorted(row.index for row in rows)
    for wave in found:
        assert len({row.entity for row in wave}) == len(wave)
    for who in "pq":
        times = [row.time for wave in found for row in wave if row.entity == who]
        assert times == sorted(times)
