"""Loading and splitting examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import LABELS, load_arrays, load_data, make_run
from unfold_supernet.family.datasets import hold_out_rows, split_by_group
from unfold_supernet.schema.training import DataSpec
from unfoldkit.api import UnfoldError


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=2, max_size=200), st.floats(0.05, 0.95), st.integers(0, 99))
def test_no_group_is_on_both_sides(groups: list[int], share: float, seed: int) -> None:
    """Every row is on one side, no group on both; with two groups, neither side is empty."""
    train, test = split_by_group(np.array(groups), share, seed)
    assert sorted([*train, *test]) == list(range(len(groups)))
    assert {groups[row] for row in train}.isdisjoint(groups[row] for row in test)
    assert len(set(groups)) == 1 or (len(train) and len(test))


def test_group_and_given_splits_are_respected(tmp_path: Path) -> None:
    """No group is on both sides or partly held out, from an NPZ or a CSV; a given split is used as it is."""
    groups = np.tile(np.arange(8), 5)
    by_group = {"split": "inter-patient", "group": "subject"}
    found = load_arrays(tmp_path, "conv1d", by_group, x=np.ones((40, 9)), subject=groups)
    held = hold_out_rows(found, 0.3, 0)
    for one, other in ((found.train, found.test), (held.train, held.holdout)):
        assert min(len(one), len(other)) > 0
        assert set(groups[one]).isdisjoint(groups[other])
    sides = np.where(groups < 5, 1, 2)
    given_ = load_arrays(tmp_path, "conv1d", {"split": "given"}, x=np.ones((40, 9)), split=sides)
    np.testing.assert_array_equal(given_.train, np.flatnonzero(sides == 1))
    rows = "\n".join(f"{at},p{groups[at]},{LABELS[at]}" for at in range(40))
    (tmp_path / "d.csv").write_text(f"f,subject,target\n{rows}\n", "utf-8")
    run = make_run(tmp_path, base=tmp_path)
    table = load_data(DataSpec(source="file", path="d.csv", split="inter-patient", group="subject"), run)
    assert table.x.shape == (40, 1, 1)
    assert set(groups[table.train]).isdisjoint(groups[table.test])


def test_a_class_of_one_patient_is_trained_on(tmp_path: Path) -> None:
    """Whatever patients are drawn to test on, a class that only one of them shows can be learnt."""
    patients = np.repeat(np.arange(8), 5)
    y = np.where(np.arange(40) == 12, 2, np.arange(40) % 2)
    (tmp_path / "data.npz").touch()
    for seed in range(12):
        run = make_run(tmp_path, base=tmp_path, seed=seed)
        np.savez(tmp_path / "data.npz", x=np.ones((40, 9)), y=y, patient=patients)
        spec = DataSpec(source="file", path="data.npz", split="inter-patient", group="patient")
        data = load_data(spec, run)
        assert 2 in data.y[data.train]
        assert set(patients[data.train]).isdisjoint(patients[data.test])


def test_held_out_patients_suffice_for_a_temperature_and_keep_their_mix(tmp_path: Path) -> None:
    """Three patients of 22 are held out, with all of their beats; training takes at most 8,000 normal beats."""
    patients = np.repeat(np.arange(33), 500)
    y = np.where(np.arange(len(patients)) % 20, 0, 2)
    side = np.where(patients < 22, 1, 2)
    arrays: dict[str, Any] = {"X": np.ones((len(y), 8)), "rr": np.ones((len(y), 2)), "y": y}
    arrays |= {"split": side, "record": patients}
    np.savez(tmp_path / "beats.npz", **arrays)
    spec = DataSpec(source="mitbih", path="beats.npz", split="inter-patient")
    data = load_data(spec, make_run(tmp_path, base=tmp_path))
    assert data.groups is not None
    assert (data.y[data.train] == 0).sum() == 8000
    # of the odds of a normal beat, the network sees this fraction
    assert data.logit_shift[0] == pytest.approx(np.log((y[side == 1] == 0).sum() / 8000))
    assert not data.logit_shift[1:].any()
    assert set(data.groups[data.test]) == set(range(22, 33))
    held = hold_out_rows(data, 0.1, 0, 10)
    apart = set(data.groups[held.holdout])
    assert len(apart) == 3
    assert apart.isdisjoint(data.groups[held.train])
    assert apart.isdisjoint(data.groups[held.test])
    assert len(held.holdout) == 3 * 500
    assert (data.y[held.holdout] == 2).mean() == pytest.approx(1 / 20)


@pytest.mark.parametrize("has_groups", [False, True])
def test_rare_classes_keep_training_rows(tmp_path: Path, has_groups: bool) -> None:
    """Rows for validation leave something to train on of every class, in whole groups where rows have groups."""
    groups, y = np.repeat(np.arange(20), 2), np.arange(40) // 4
    y[-8:] = np.arange(40)[-8:] // 2
    data = load_arrays(tmp_path, "conv1d", x=np.ones((40, 9)), y=y)
    data = replace(data, train=np.arange(40), groups=groups if has_groups else None)
    for seed in range(20):
        held = hold_out_rows(data, 0.5, seed)
        assert set(y[held.train]) == set(y)
        assert sorted([*held.train, *held.holdout]) == [*range(40)]
        assert not has_groups or set(groups[held.train]).isdisjoint(groups[held.holdout])


def test_single_training_row_is_refused(tmp_path: Path) -> None:
    """A single training row has no spread for the norms and is refused with the counts."""
    split = np.where(np.arange(len(LABELS)) < 1, 1, 2)
    with pytest.raises(UnfoldError, match="1 rows to train and 39 to test"):
        load_arrays(tmp_path, "mlp", {"split": "given"}, x=np.ones((len(LABELS), 3)), split=split)


def test_npz_and_csv_give_the_same_examples(tmp_path: Path) -> None:
    """An NPZ and a CSV give the same rows, and the split is by class."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)).astype(np.float32), np.repeat(["a", "b", "c"], 20)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    lines = [
        "f0,f1,f2,f3,f4,target",
        *(",".join([*map(repr, map(float, row)), label]) for row, label in zip(x, y, strict=True)),
    ]
    (tmp_path / "d.csv").write_text("\n".join(lines), "utf-8")
    run = make_run(tmp_path, base=tmp_path)
    one, other = (load_data(DataSpec(source="file", path=name, test=0.25), run) for name in ("d.npz", "d.csv"))
    np.testing.assert_array_equal(one.x, other.x)
    np.testing.assert_array_equal(one.y, other.y)
    assert np.bincount(one.y[one.test]).tolist() == [5, 5, 5]
    assert set(one.train).isdisjoint(one.test)
    flat = load_data(DataSpec(source="file", path="d.csv", test=0.25), run, "mlp")
    assert flat.x.shape == (60, 5, 1)
    np.testing.assert_array_equal(flat.x[:, :, 0], one.x[:, 0])


def write_copies(path: Path, copies: int = 5, **arrays: Any) -> None:
    """Write 60 random rows with random labels, each copied; copies are 60 rows apart."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 6)), rng.integers(0, 2, 60)
    np.savez(path, x=np.tile(x, (copies, 1)), y=np.tile(y, copies), **arrays)


def test_copies_of_a_row_are_on_one_side(tmp_path: Path) -> None:
    """A network remembers a row, so its copies would test nothing; they are held out together too."""
    write_copies(tmp_path / "data.npz")
    data = load_data(DataSpec(source="file", path="data.npz"), make_run(tmp_path, base=tmp_path))
    held = hold_out_rows(data, 0.3, 0)
    assert sorted([*held.train, *held.holdout, *held.test]) == list(range(300))
    sides = [set(rows % 60) for rows in (held.train, held.holdout, held.test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 60
    assert len(data.test) == pytest.approx(120, abs=5)
    assert "copies of a row on one side" in data.about


@pytest.mark.parametrize("form", ["npz", "csv"])
def test_patients_that_no_key_names_are_noticed(tmp_path: Path, form: str) -> None:
    """Rows of a patient on both sides of a random split are no independent test; one row of each is."""
    path, rng = tmp_path / f"data.{form}", np.random.default_rng(0)
    for patients, name in ((np.arange(60) // 3, "Patient_ID"), (np.arange(60), "")):
        x, y = rng.normal(size=60), np.arange(60) % 2
        if form == "npz":
            np.savez(path, x=x[:, None], y=y, Patient_ID=patients, mrn=np.array([{}] * 60))
        else:
            lines = [f"{a},{b},{c}" for a, b, c in zip(x, patients, y, strict=True)]
            path.write_text("\n".join(["f,Patient_ID,target", *lines]))
        data = load_data(DataSpec(source="file", path=path.name), make_run(tmp_path, base=tmp_path))
        assert data.unnamed_group == name


@pytest.mark.parametrize(
    ("options", "arrays"),
    [
        ({"split": "given"}, {"split": np.where(np.arange(300) < 90, 1, 2)}),
        ({"split": "inter-patient", "group": "patient"}, {"patient": np.arange(300) // 60}),
    ],
)
def test_a_test_of_copies_alone_is_refused(tmp_path: Path, options: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Patients that were exported again under other names are no others, whatever the file says."""
    write_copies(tmp_path / "data.npz", **arrays)
    with pytest.raises(UnfoldError, match="inputs of rows to train on"):
        load_data(DataSpec(source="file", path="data.npz", **options), make_run(tmp_path, base=tmp_path))


def test_copies_are_left_out_of_a_given_test(tmp_path: Path) -> None:
    """Rows to test on that repeat rows to train on are not tested, and counted."""
    write_copies(tmp_path / "data.npz", split=np.where(np.arange(300) < 40, 1, 2))
    spec = DataSpec(source="file", path="data.npz", split="given")
    data = load_data(spec, make_run(tmp_path, base=tmp_path))
    assert set(data.test % 60) == set(range(40, 60))
    assert "160 test rows left out as copies" in data.about


def test_rows_of_few_values_repeat_without_being_copies(tmp_path: Path) -> None:
    """Rows of three binary columns must repeat, so all of them are tested."""
    x = np.random.default_rng(1).integers(0, 2, (200, 3))
    np.savez(tmp_path / "data.npz", x=x, y=x[:, 0])
    data = load_data(DataSpec(source="file", path="data.npz"), make_run(tmp_path, base=tmp_path))
    assert data.inputs is None
    assert len(data.test) == pytest.approx(80, abs=1)
