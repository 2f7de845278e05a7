"""Builds skops files that would run code, and runs with a manifest that lists them as their own."""

from __future__ import annotations

import hashlib
import io
import json
import operator
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.ensemble import BaggingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

Schema = dict[str, Any]


def evaluating(marker: Path) -> bytes:
    """The file of the report: three trusted functions, of which the last evaluates text at the first prediction."""
    text = f"__import__('pathlib').Path({str(marker)!r}).write_text('run')"
    steps = [
        ("fill", FunctionTransformer(np.full_like, kw_args={"fill_value": text, "dtype": "U200"})),
        ("text", FunctionTransformer(np.array_str)),
        ("run", FunctionTransformer(eval)),
        ("last", LogisticRegression().fit([[0.0], [1.0]], [0, 1])),
    ]
    return bytes(skops.io.dumps(Pipeline(steps)))


def with_attribute(value: Any, name: str = "penalty") -> bytes:
    """A fitted model with a replaced attribute."""
    model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    setattr(model, name, value)
    return bytes(skops.io.dumps(model))


def schema_of(data: bytes) -> Schema:
    """The tree of a skops file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found: Schema = json.loads(archive.read("schema.json"))
    return found


def with_schema(data: bytes, schema: Any, extra: Mapping[str, bytes] | None = None) -> bytes:
    """The same file with another tree, and other members."""
    stream, extra = io.BytesIO(), dict(extra or {})
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            if name != "schema.json" and name not in extra:
                new.writestr(name, old.read(name))
        for name, content in extra.items():
            new.writestr(name, content)
        new.writestr("schema.json", schema if isinstance(schema, str) else json.dumps(schema))
    return stream.getvalue()


def plain() -> bytes:
    """A model of ours that holds no surprise."""
    return with_attribute("l2")


def edited(change: Callable[[Schema], None]) -> bytes:
    """A model of ours with a changed tree."""
    data = plain()
    schema = schema_of(data)
    change(schema)
    return with_schema(data, schema)


def _node(loader: str, module: str, kind: str, **more: Any) -> Schema:
    return {"__class__": kind, "__module__": module, "__loader__": loader, "__id__": 7_000_001, **more}


def _penalty(node: Schema) -> bytes:
    return edited(lambda schema: schema["content"]["content"].__setitem__("penalty", node))


def _text(content: Any, number: int = 7_000_002) -> Schema:
    return _node("JsonNode", "builtins", "str", content=json.dumps(content), is_json=True) | {"__id__": number}


def _stolen_array() -> bytes:
    """An array with a header that states far more than its file holds."""
    data = plain()
    name = next(name for name in zipfile.ZipFile(io.BytesIO(data)).namelist() if name.endswith(".npy"))
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    head += b" " * (118 - len(head) - 1 + 0) + b"\n"
    return with_schema(data, schema_of(data), {name: b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head})


def _pickled_array() -> bytes:
    data, stream = plain(), io.BytesIO()
    np.save(stream, np.array([print], dtype=object), allow_pickle=True)
    name = next(name for name in zipfile.ZipFile(io.BytesIO(data)).namelist() if name.endswith(".npy"))
    return with_schema(data, schema_of(data), {name: stream.getvalue()})


def _bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", json.dumps(schema_of(plain())))
        with archive.open("1.npy", "w", force_zip64=True) as member:
            for _ in range(1100):
                member.write(b"\0" * (1 << 20))
    return stream.getvalue()


def _forest(change: Callable[[np.ndarray], None]) -> bytes:
    rows = np.random.default_rng(0).random((60, 3))
    data = bytes(skops.io.dumps(RandomForestClassifier(2, random_state=0).fit(rows, rows[:, 0] > 0.5)))
    schema = schema_of(data)
    tree = schema["content"]["content"]["estimators_"]["content"][0]["content"]["content"]["tree_"]
    name = tree["content"]["content"]["nodes"]["file"]
    nodes = np.load(io.BytesIO(zipfile.ZipFile(io.BytesIO(data)).read(name)))
    change(nodes)
    stream = io.BytesIO()
    np.save(stream, nodes)
    return with_schema(data, schema, {name: stream.getvalue()})


def _generator() -> bytes:
    rows = np.random.default_rng(0).random((60, 3))
    data = bytes(skops.io.dumps(HistGradientBoostingClassifier(max_iter=1).fit(rows, rows[:, 0] > 0.5)))
    schema = schema_of(data)
    state = schema["content"]["content"]["_feature_subsample_rng"]["content"]["bit_generator"]
    state["content"]["bit_generator"]["content"] = '"seed"'
    return with_schema(data, schema)


def _shared_number() -> bytes:
    def change(schema: Schema) -> None:
        content = schema["content"]["content"]
        content["coef_"]["__id__"] = content["penalty"]["__id__"]

    return edited(change)


HOSTILE: Mapping[str, Callable[[Path], bytes]] = {
    "eval": evaluating,
    "partial": lambda _: with_attribute(partial(int, base=10)),
    "bound method": lambda _: with_attribute(LogisticRegression().fit),
    "operator": lambda _: with_attribute(operator.methodcaller("system", "true")),
    "attrgetter": lambda _: with_attribute(operator.attrgetter("__class__")),
    "function": lambda _: with_attribute(json.loads),
    "builtin function": lambda _: with_attribute(eval),
    "ufunc": lambda _: with_attribute(np.exp),
    "foreign class": lambda _: with_attribute(Path),
    "foreign estimator": lambda _: bytes(
        skops.io.dumps(BaggingClassifier(KMeans(2, n_init=1)).fit([[0.0], [1.0], [2.0]], [0, 1, 1]))
        if hasattr(KMeans, "predict_proba")
        else with_attribute(KMeans(2, n_init=1))
    ),
    "function transformer": lambda _: bytes(skops.io.dumps(make_pipeline(FunctionTransformer(), LogisticRegression()))),
    "object of a module": lambda _: _penalty(_node("ObjectNode", "subprocess", "Popen", content=_text(None))),
    "constructor": lambda _: _penalty(_node("ConstructorFromReduceNode", "pathlib", "PosixPath", content=_text(None))),
    "loss of a module": lambda _: _penalty(
        _node("LossNode", "os", "system", content=_text(None), __reduce__={"args": _text("true", 7_000_003)})
    ),
    "list of a module": lambda _: _penalty(_node("ListNode", "os", "system", content=[])),
    "number of a module": lambda _: _penalty(_node("NdArrayNode", "os", "system", type="numpy", file="1.npy")),
    "dict of a module": lambda _: _penalty(
        _node("DictNode", "os", "system", content={}, key_types=_node("ListNode", "builtins", "list", content=[]))
    ),
    "old function": lambda _: edited(
        lambda schema: schema.update(
            protocol=0,
            __loader__="FunctionNode",
            content={"module_path": "os", "function": "system"},
        )
    ),
    "cached": lambda _: _penalty(_node("CachedNode", "builtins", "str")),
    "unknown loader": lambda _: _penalty(_node("EvalNode", "builtins", "eval")),
    "method replaced": lambda _: with_attribute(1.0, "predict_proba"),
    "folder to cache in": lambda _: bytes(
        skops.io.dumps(make_pipeline(StandardScaler(), LogisticRegression(), memory="cache"))
    ),
    "generator": lambda _: _generator(),
    "header of an array": lambda _: _stolen_array(),
    "pickled array": lambda _: _pickled_array(),
    "bomb": lambda _: _bomb(),
    "tree that ends nowhere": lambda _: _forest(lambda nodes: nodes["left_child"].__setitem__(0, 0)),
    "tree out of bounds": lambda _: _forest(lambda nodes: nodes["right_child"].__setitem__(0, 10**6)),
    "column out of bounds": lambda _: _forest(lambda nodes: nodes["feature"].__setitem__(0, 10**6)),
    "two nodes with one number": lambda _: _shared_number(),
    "no number": lambda _: edited(lambda schema: schema["content"].pop("__id__")),
    "text for a tree": lambda _: with_schema(plain(), '"eval"'),
    "deep": lambda _: with_schema(plain(), "[" * 100_000 + "]" * 100_000),
    "not an archive": lambda _: b"PK\x03\x04 no archive",
    "empty": lambda _: b"",
    "pickle": lambda _: b"\x80\x04cos\nsystem\n.",
}
"""How each hostile file is made; the folder is for what it would write."""


def own_models() -> dict[str, bytes]:
    """Small files of our own kinds of models."""
    x, y = load_digits(n_class=3, return_X_y=True)
    x, y = x[:60, 10:16], y[:60]
    models = {
        "logistic-regression": make_pipeline(StandardScaler(), LogisticRegression()),
        "random-forest": RandomForestClassifier(2, max_depth=3, random_state=0),
        "hist-gradient-boosting": HistGradientBoostingClassifier(max_iter=2, min_samples_leaf=5),
        "knn": KNeighborsClassifier(),
        "svc": SVC(gamma=0.25),
        "mlp": MLPClassifier((4,), max_iter=3, random_state=0),
        "sgd": SGDClassifier(loss="log_loss", random_state=0),
    }
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: bytes(skops.io.dumps(model.fit(x, y))) for name, model in models.items()}


def replace_in_run(run: Path, name: str, data: bytes) -> None:
    """Put other bytes in the place of a run's file, and let the manifest say that they belong there."""
    (run / name).write_bytes(data)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["files"][name] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (run / "manifest.json").write_text(json.dumps(manifest))
