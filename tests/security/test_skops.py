"""Files of scikit-learn models run no code: a type outside the list is refused before anything is created."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import json
import os
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import all_estimators

from tests.security.hostile import HOSTILE, own_models, plain, schema_of, with_schema
from unfoldkit.errors import UnfoldError
from unfoldkit.safe_io.skops import check_skops, dump_skops, load_skops
from unfoldkit.safe_io.skops_types import TRUSTED_TYPES

REFUSED_AT_TRAINING = {"TunedThresholdClassifierCV"}
"""Classifiers with files that would hold a function."""
NEED_MORE_LABELS = {"ClassifierChain", "MultiOutputClassifier"}


@pytest.mark.e2e
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_is_refused_before_skops_reads_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is an error of the caller with the name of the file, within two seconds."""
    import skops.io

    data = HOSTILE[name](tmp_path / "marker")
    monkeypatch.setattr(skops.io, "loads", lambda *_, **__: pytest.fail("skops was asked"))
    began = time.perf_counter()
    with pytest.raises(UnfoldError, match=r"bad\.skops") as error:
        load_skops(data, "bad.skops")
    assert time.perf_counter() - began < 2
    assert error.value.code == 2
    assert not (tmp_path / "marker").exists()


def test_a_clock_before_archives_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board without a battery starts in 1970: the clock is at fault, not the estimator."""
    model = LogisticRegression().fit(np.eye(4), [0, 1, 0, 1])
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "localtime", lambda _seconds=0.0: time.gmtime(0.0))
    with pytest.raises(UnfoldError, match="the clock of this machine says 1970"):
        dump_skops(model, "logistic-regression")


def test_the_refused_type_is_named(tmp_path: Path) -> None:
    """The message names the first type that is not trusted, and how the file would build it."""
    with pytest.raises(UnfoldError, match=r"not trusted: .*FunctionTransformer \(ObjectNode\)"):
        load_skops(HOSTILE["eval"](tmp_path / "marker"), "bad.skops")
    with pytest.raises(UnfoldError, match=r"not trusted: functools\.partial \(PartialNode\)"):
        load_skops(HOSTILE["partial"](tmp_path), "bad.skops")


def test_no_function_is_in_the_list() -> None:
    """Nodes that build something to call have no entry, and every entry is a class, not a function."""
    nodes = {"FunctionNode", "PartialNode", "MethodNode", "OperatorFuncNode", "ConstructorFromReduceNode", "CachedNode"}
    assert not nodes & TRUSTED_TYPES.keys()
    names = {name for kinds in TRUSTED_TYPES.values() for name in kinds if not name.startswith("_loss.")}
    assert not [name for name in names if "FunctionTransformer" in name or "_scorer" in name or "PyFunc" in name]
    for name in names:
        module, _, kind = name.rpartition(".")
        found = getattr(importlib.import_module(module), kind, type)
        assert isinstance(found, type), name


def test_storing_a_model_imports_no_array_library(tmp_path: Path) -> None:
    """Where PyTorch is installed, a look through all of scikit-learn would import it."""
    names = {"torch", "cupy", "dask"}
    for name in names:
        (tmp_path / f"{name}.py").write_text("")
    code = (
        "import sys; from sklearn.linear_model import LogisticRegression as Model; "
        "from unfoldkit.safe_io.skops import dump_skops, load_skops; "
        "load_skops(dump_skops(Model().fit([[0], [1]], [0, 1]), 'a')); "
        f"print(*({names!r} & sys.modules.keys()), None in sys.modules.values())"
    )
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    call = [sys.executable, "-c", code]
    result = subprocess.run(call, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def _made(cls: type[Any]) -> Any:
    """Return the classifier with few trees: one names the same types as a hundred."""
    parameters = inspect.signature(cls.__init__).parameters
    if "n_estimators" in parameters:
        return cls(n_estimators=3)
    if cls.__name__ == "HistGradientBoostingClassifier":
        return cls(max_iter=3)
    if "estimators" in parameters:
        return cls(estimators=[("a", LogisticRegression())])
    if "estimator" in parameters and not (
        parameters["estimator"].default is None and cls.__name__ != "SelfTrainingClassifier"
    ):
        return cls(estimator=LogisticRegression())
    return cls()


@pytest.mark.e2e
@pytest.mark.parametrize(("name", "cls"), all_estimators("classifier"))
@pytest.mark.parametrize("labels", [2, 3])
def test_every_classifier_is_stored_and_loaded_or_refused_at_training(name: str, cls: type[Any], labels: int) -> None:
    """What a fitted classifier of scikit-learn writes is in the list, or storing it fails with its name."""
    if name in NEED_MORE_LABELS:
        pytest.skip("takes several labels a row, which no cascade has")
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=(90, 4)))
    y = np.digitize(x[:, 0] + 0.1 * rng.random(90), np.quantile(x[:, 0], [0.5] if labels == 2 else [0.33, 0.66]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # a class that leaves scikit-learn says so
        raw = _made(cls)
        gaps_filled = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), _made(cls))
        scaled = make_pipeline(StandardScaler(), _made(cls))
    stored = 0
    for model in (raw, gaps_filled, scaled):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model.fit(x, y)
            except ValueError:  # it takes two labels only, or no negative numbers
                continue
            stored += 1
            if name in REFUSED_AT_TRAINING:
                with pytest.raises(UnfoldError, match=f"{name} cannot be stored: .* not trusted") as error:
                    dump_skops(model, name)
                assert error.value.code == 2
                continue
            loaded = load_skops(dump_skops(model, name), "own.skops")
            np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    assert stored or (labels == 3 and "Threshold" in name)


@pytest.mark.parametrize("metric", ["euclidean", "manhattan", "chebyshev", "minkowski", "canberra", "braycurtis"])
@pytest.mark.parametrize("algorithm", ["kd_tree", "ball_tree", "brute"])
def test_neighbours_of_every_plain_metric_are_stored(metric: str, algorithm: str) -> None:
    """The trees and distances that a spec can choose by parameters are in the list."""
    x = np.random.default_rng(0).random((40, 3))
    try:
        model = KNeighborsClassifier(metric=metric, algorithm=algorithm).fit(x, x[:, 0] > 0.5)
    except ValueError:
        pytest.skip("this tree has no such metric")
    loaded = load_skops(dump_skops(model, "knn"), "own.skops")
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))


CALLS = ("exec", "os.", "subprocess.", "socket.", "pickle.", "ctypes.", "shutil.", "open")
heard: list[str] = []
listening = [False]


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if listening[0] and event.startswith(CALLS):
        heard.append(f"{event} {arguments!r:.200}")


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from _nodes(child, (*path, key))


NAMES = (
    "eval", "system", "FunctionTransformer", "Pipeline", "Popen", "partial", "FunctionNode", "MethodNode", "TypeNode",
    "ObjectNode", "ListNode", "ConstructorFromReduceNode", "OperatorFuncNode", "builtins", "os", "subprocess", "numpy",
    "dict", "list", "str", "1.npy", "", "null", "[]", "-1", "1e400", '"eval"', "memory", "__class__",
)  # fmt: skip


def _mutated(schema: Any, draw: random.Random, paths: list[tuple[Any, ...]]) -> Any:
    """A tree with one to three of its places changed: other values, other types, others' places, or gone."""
    changed = copy.deepcopy(schema)
    for _ in range(draw.randint(1, 3)):
        path = draw.choice(paths)
        place = changed
        try:
            for key in path[:-1]:
                place = place[key]
            old = place[path[-1]]
        except (KeyError, IndexError, TypeError):
            continue
        way = draw.randrange(6)
        if way == 0:
            place[path[-1]] = draw.choice(NAMES)
        elif way == 1:
            place[path[-1]] = draw.choice([None, 0, -1, 10**30, 0.5, [], {}, True, [old], {"content": old}])
        elif way == 2:
            del place[path[-1]]
        elif way == 3:
            place[path[-1]] = copy.deepcopy(_at(schema, draw.choice(paths)))
        elif way == 4 and isinstance(old, str):
            place[path[-1]] = old[: draw.randint(0, len(old))] + draw.choice(NAMES)
        elif isinstance(place, dict):
            place[draw.choice(NAMES)] = old
    return changed


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _types(value: Any, seen: set[int]) -> Iterator[str]:
    """The types of an object and of all that it holds."""
    if id(value) in seen:
        return
    seen.add(id(value))
    yield f"{type(value).__module__}.{type(value).__name__}"
    if isinstance(value, type):
        yield f"{value.__module__}.{value.__name__}"
        return
    held = value.items() if isinstance(value, dict) else ()
    for key, item in held:
        yield from _types(key, seen)
        yield from _types(item, seen)
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _types(item, seen)
    if isinstance(value, np.ndarray) and value.dtype == object:
        for item in value.ravel():
            yield from _types(item, seen)
    yield from (found for item in getattr(value, "__dict__", {}).values() for found in _types(item, seen))


@pytest.mark.e2e
def test_a_mutated_schema_loads_as_a_model_of_trusted_types_or_is_refused() -> None:
    """Of 2,000 mutants of our own files each is refused by our error, or loads without a call out of scikit-learn.

    What loads is an estimator of the types that the list has, and of the types of the model that it came from unless
    the mutant names others of the list.
    """
    sys.addaudithook(_hear)
    for place in {name.rpartition(".")[0] for kinds in TRUSTED_TYPES.values() for name in kinds}:
        with contextlib.suppress(ImportError):  # another release of scikit-learn has it
            importlib.import_module(place)
    plain_types = {"builtins.NoneType", "builtins.int", "builtins.float", "builtins.bool", "builtins.str"}
    trusted = {name for kinds in TRUSTED_TYPES.values() for name in kinds} | plain_types
    trusted |= {"builtins.type", "builtins.dict", "builtins.list", "builtins.tuple", "numpy.dtypes"}
    loaded = refused = 0
    wrong: list[str] = []
    for name, data in own_models().items():
        draw = random.Random(name)  # noqa: S311
        schema = schema_of(data)
        paths = list(_nodes(schema))
        load_skops(data, name)
        for _ in range(286):
            mutant = with_schema(data, _mutated(schema, draw, paths))
            heard.clear()
            listening[0] = True
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model = load_skops(mutant, "mutant.skops")
            except UnfoldError as error:
                refused += 1
                wrong += [str(error)] if error.code != 2 or "mutant.skops" not in str(error) else []
                continue
            finally:
                listening[0] = False
            loaded += 1
            assert not heard, (name, heard)
            foreign = {
                kind for kind in _types(model, set()) if kind not in trusted and not kind.startswith("numpy.dtype")
            }
            assert not foreign, (name, foreign)
            named = check_skops(mutant)
            assert named <= trusted | {"numpy.dtype"}
    assert not wrong
    assert loaded + refused >= 2000
    assert loaded > 20
    assert refused > 1000


def test_our_own_models_name_the_types_they_always_named() -> None:
    """The check of a file returns the types in it, and nothing of a plain model is refused."""
    names = check_skops(plain(), "own.skops")
    assert "sklearn.linear_model._logistic.LogisticRegression" in names
    assert json.dumps(sorted(names))
