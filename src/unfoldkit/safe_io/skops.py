"""Stores and loads scikit-learn models as skops files that run no code.

skops trusts more than data by itself: every estimator of scikit-learn, ``FunctionTransformer`` among them, and the
functions of NumPy and SciPy. So the tree in ``schema.json`` is read here first. It may name the exact types in
``TRUSTED_TYPES`` only, and nothing that calls; the file is refused before skops creates any object.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from unfoldkit.errors import UnfoldError, escape_unprintable, user_error
from unfoldkit.safe_io.archives import read_archive, read_member
from unfoldkit.safe_io.arrays import parse_npy
from unfoldkit.safe_io.files import parse_object
from unfoldkit.safe_io.skops_types import TRUSTED_TYPES

SCHEMA = "schema.json"
MAX_SCHEMA_BYTES = 256 << 20
PROTOCOLS = (1, 2)
"""Versions of the skops format with nodes that this module reads."""
ARCHIVE_YEARS = range(1980, 2108)
"""Years that the members of a ZIP archive may bear."""
ARRAY_LIBRARIES = tuple(f"sklearn.externals.array_api_compat.{name}" for name in ("cupy", "dask", "torch"))
"""Packages of scikit-learn that import another library."""
BIT_GENERATOR = '"PCG64"'
_EXTRA_KEYS = {"protocol", "_skops_version"}
Node = Mapping[str, Any]


def dump_skops(model: Any, name: str) -> bytes:
    """Store a fitted model, after checking that :func:`load_skops` takes what was stored.

    Args:
        model: The fitted model.
        name: What the user calls it, for the message.

    Raises:
        UnfoldError: skops cannot store the model, or the file would name a type that is refused at loading.
    """
    library = import_skops()
    try:
        data = bytes(library.dumps(model))
        check_skops(data)
    except UnfoldError as error:
        message = f"{name} cannot be stored: {error.diagnostics[0].message}"
        raise user_error(message, hint="name another estimator, or other parameters") from error
    # skops raises whatever the type's own code for copying raises
    except Exception as error:
        year = time.localtime().tm_year
        if year not in ARCHIVE_YEARS:
            message = f"{name} cannot be stored: the clock of this machine says {year}, which no archive can hold"
            raise user_error(message, hint="set the clock") from error
        raise user_error(f"{name} cannot be stored: {_first_line(error)}", hint="name another estimator") from error
    return data


def load_skops(data: bytes, file: str = "") -> Any:
    """Return the model in a skops file that holds no type outside ``TRUSTED_TYPES``.

    Args:
        data: The bytes of the file.
        file: Its name, for messages.

    Raises:
        UnfoldError: The file is damaged, or names a function or a type that is not trusted.
    """
    names = check_skops(data, file)
    _bind_loss_module(names)
    library = import_skops()
    try:
        return library.loads(data, trusted=sorted(names))
    # types of scikit-learn check what they are restored from, each with errors of its own
    except Exception as error:
        raise user_error(f"not a stored model: {_first_line(error)}", file=file) from error


def import_skops() -> ModuleType:
    """Import ``skops.io`` without the array libraries that scikit-learn knows.

    skops looks for estimators in every package of scikit-learn. Three of them are adapters that hold none, but import
    PyTorch, CuPy or Dask where those are installed: seconds, and 0.5 GiB in each process.
    """
    absent = [name for name in ARRAY_LIBRARIES if "skops.io" not in sys.modules and name not in sys.modules]
    # None stands for a module that cannot be imported
    sys.modules.update(dict.fromkeys(absent, cast("ModuleType", None)))
    try:
        return importlib.import_module("skops.io")
    finally:
        for name in absent:
            sys.modules.pop(name, None)


def check_skops(data: bytes, file: str = "") -> set[str]:
    """Return the types that a skops file names; nothing is imported or created from it but arrays of numbers.

    Raises:
        UnfoldError: The file is damaged, or names a function or a type that is not trusted.
    """
    with closing(read_archive(data, file)) as archive:
        if SCHEMA not in archive.namelist() or archive.getinfo(SCHEMA).file_size > MAX_SCHEMA_BYTES:
            raise user_error(
                f"not a stored model: no {SCHEMA}, or one larger than {MAX_SCHEMA_BYTES >> 20} MiB", file=file
            )
        schema = parse_object(read_member(archive, SCHEMA, file), file)
        checker = _Checker(archive, file)
        if type(schema.get("protocol")) is not int or schema["protocol"] not in PROTOCOLS:
            raise checker.damaged("another version of the format")
        root = {key: value for key, value in schema.items() if key not in _EXTRA_KEYS}
        if root.get("__loader__") != "ObjectNode":
            checker.refuse_type(root)
            raise checker.damaged("it holds no estimator")
        checker.visit(root, ())
    _check_attributes(checker)
    return checker.names


@dataclass(slots=True)
class _Checker:
    """Walks a schema before skops does; every node is checked once, by the number that skops shares objects by."""

    archive: zipfile.ZipFile
    file: str
    names: set[str] = field(default_factory=set)
    seen: dict[int, Node] = field(default_factory=dict)
    owners: dict[str, int] = field(default_factory=dict)
    attributes: dict[str, set[str]] = field(default_factory=dict)

    def damaged(self, message: str) -> UnfoldError:
        return user_error(f"not a stored model: {message}", file=self.file)

    def visit(self, node: Any, widths: tuple[int, ...]) -> None:
        """Check a node and all below it; ``widths`` are the columns that the estimators around it check."""
        name = self.refuse_type(node)
        number = node.get("__id__")
        if type(number) is not int or number <= 0:
            raise self.damaged("a node has no number")
        if number in self.seen:
            # skops takes the first node of a number for every other one
            if self.seen[number].get("file") != node.get("file") or not _is_same(self.seen[number], node):
                raise self.damaged("two nodes have one number")
            return
        self.seen[number] = node
        self.names.add(name)
        widths = (*widths, *self._width(node))
        for child in self._children(node, name, widths):
            self.visit(child, widths)

    def refuse_type(self, node: Any) -> str:
        """Return the type that a node builds, if the list has it."""
        if not isinstance(node, dict):
            raise self.damaged("a node is not an object")
        loader, module, kind = (node.get(key) for key in ("__loader__", "__module__", "__class__"))
        if not (isinstance(loader, str) and isinstance(module, str) and isinstance(kind, str)):
            raise self.damaged("a node names no type")
        name = f"{module}.{kind}"
        if name not in TRUSTED_TYPES.get(loader, ()):
            shown = escape_unprintable(f"{name} ({loader})")[:200]
            raise user_error(f"the file holds a type that is not trusted: {shown}", file=self.file)
        return name

    def _children(self, node: Node, name: str, widths: tuple[int, ...]) -> Iterator[Any]:
        loader = node["__loader__"]
        if loader == "JsonNode":
            self._scalar(node)
        elif loader in ("ListNode", "TupleNode"):
            yield from self._list(node.get("content"))
        elif loader == "DictNode":
            yield from self._mapping(node)
        elif loader == "NdArrayNode":
            yield from self._array(node, name)
        elif loader == "ObjectNode":
            yield from self._object(node, name, widths)
        elif loader in ("TreeNode", "LossNode"):
            yield from self._reduced(node, loader, widths)
        elif loader == "RandomGeneratorNode":
            yield from self._generator(node)
        elif loader in ("DTypeNode", "RandomStateNode"):
            yield node.get("content")

    def _scalar(self, node: Node) -> Any:
        import json

        try:
            value = json.loads(node["content"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise self.damaged("a value is not JSON") from error
        if isinstance(value, (dict, list)):
            raise self.damaged("a value is neither a number nor text")
        return value

    def _list(self, content: Any) -> list[Any]:
        if not isinstance(content, list):
            raise self.damaged("a list has no items")
        return content

    def _mapping(self, node: Node) -> list[Any]:
        content, keys = node.get("content"), node.get("key_types")
        if not isinstance(content, dict) or not isinstance(keys, dict) or keys.get("__loader__") != "ListNode":
            raise self.damaged("a mapping has no items")
        kinds = self._list(keys.get("content"))
        if len(kinds) != len(content) or any(
            not isinstance(kind, dict) or kind.get("__loader__") != "TypeNode" for kind in kinds
        ):
            raise self.damaged("a mapping does not name the types of its keys")
        return [keys, *content.values()]

    def _array(self, node: Node, name: str) -> list[Any]:
        form = node.get("type")
        if form == "json" and name == "numpy.ndarray":
            return [*self._list(node.get("content")), node.get("shape")]
        if form != "numpy" or not isinstance(node.get("file"), str):
            raise self.damaged("an array has no file")
        if self.owners.setdefault(node["file"], node["__id__"]) != node["__id__"]:
            raise self.damaged("two arrays have one file")
        array = self._stored(node)
        if name != "numpy.ndarray" and array.ndim:
            raise self.damaged("a number is an array")
        return []

    def _stored(self, node: Node) -> NDArray[Any]:
        return parse_npy(read_member(self.archive, node["file"], self.file), self.file)

    def _object(self, node: Node, name: str, widths: tuple[int, ...]) -> list[Any]:
        content = node.get("content")
        if content is None:
            return []
        fields = _fields(content)
        self.attributes.setdefault(name, set()).update(fields)
        if "memory" in fields and (not isinstance(fields["memory"], dict) or fields["memory"].get("content") != "null"):
            # joblib would read pickles from the folder that it names
            raise self.damaged("it names a folder to cache in")
        if name.endswith(".TreePredictor"):
            self._check_predictor(fields, widths)
        return [content]

    def _reduced(self, node: Node, loader: str, widths: tuple[int, ...]) -> list[Any]:
        reduce, content = node.get("__reduce__"), node.get("content")
        if not isinstance(reduce, dict) or not isinstance(reduce.get("args"), dict):
            raise self.damaged("a node has no arguments")
        if reduce["args"].get("__loader__") != "TupleNode":
            raise self.damaged("a node has no arguments")
        if loader == "TreeNode":
            self._check_tree(self._list(reduce["args"].get("content")), _fields(content), widths)
        return [reduce["args"], content]

    def _generator(self, node: Node) -> list[Any]:
        content = node.get("content")
        if not isinstance(content, dict):
            raise self.damaged("a generator has no state")
        name = _fields(content.get("bit_generator")).get("bit_generator")
        if not isinstance(name, dict) or name.get("content") != BIT_GENERATOR:
            raise self.damaged("a generator of numbers that is not PCG64")
        return [content.get("bit_generator"), content.get("seed_seq")]

    def _width(self, node: Node) -> tuple[int, ...]:
        width = _fields(node.get("content")).get("n_features_in_") if node["__loader__"] == "ObjectNode" else None
        if not isinstance(width, dict):
            return ()
        value = self._scalar(width) if width.get("__loader__") == "JsonNode" else None
        if type(value) is not int:
            raise self.damaged("a number of columns is not a number")
        return (value,)

    def _check_tree(self, args: list[Any], fields: Mapping[str, Any], widths: tuple[int, ...]) -> None:
        # scikit-learn follows these numbers without looking whether they lead out of the arrays
        nodes, columns = self._nodes(fields), args and isinstance(args[0], dict) and self._scalar(args[0])
        if type(columns) is not int or columns > min(widths, default=columns):
            raise self.damaged("a tree has other columns than its estimator")
        try:
            inner = nodes["left_child"] != -1
            children = np.stack([nodes["left_child"], nodes["right_child"]])
            self._check_links(children[:, inner], np.flatnonzero(inner), len(nodes))
            self._check_range(nodes["feature"][inner], columns)
        except (ValueError, TypeError, IndexError) as error:
            raise self.damaged("a tree has no nodes") from error

    def _check_predictor(self, fields: Mapping[str, Any], widths: tuple[int, ...]) -> None:
        nodes, sets = self._nodes(fields), fields.get("raw_left_cat_bitsets")
        if not isinstance(sets, dict) or not isinstance(sets.get("file"), str) or not widths:
            raise self.damaged("a tree has no sets of categories")
        try:
            inner = nodes["is_leaf"] == 0
            children = np.stack([nodes["left"], nodes["right"]]).astype(np.int64)
            self._check_links(children[:, inner], np.flatnonzero(inner), len(nodes))
            self._check_range(nodes["feature_idx"][inner], min(widths))
            self._check_range(nodes["bitset_idx"][inner & (nodes["is_categorical"] != 0)], len(self._stored(sets)))
        except (ValueError, TypeError, IndexError) as error:
            raise self.damaged("a tree has no nodes") from error

    def _nodes(self, fields: Mapping[str, Any]) -> NDArray[Any]:
        nodes = fields.get("nodes")
        if not isinstance(nodes, dict) or not isinstance(nodes.get("file"), str):
            raise self.damaged("a tree has no nodes")
        array = self._stored(nodes)
        if array.ndim != 1 or not len(array):
            raise self.damaged("a tree has no nodes")
        return array

    def _check_links(self, children: NDArray[Any], parents: NDArray[Any], count: int) -> None:
        # a child stands behind its parent, so that every way down ends
        if ((children <= parents) | (children >= count)).any():
            raise self.damaged("a tree leads out of its nodes")

    def _check_range(self, values: NDArray[Any], count: int) -> None:
        if ((values < 0) | (values >= count)).any():
            raise self.damaged("a tree reads columns that are not there")


def _is_same(first: Any, second: Any) -> bool:
    """Whether two texts of one object agree; what its copy made again has other numbers and files."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = (first.keys() | second.keys()) - {"__id__", "file"}
        return all(_is_same(first.get(key), second.get(key)) for key in keys)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_is_same, first, second))
    return bool(first == second)


def _fields(node: Any) -> Mapping[str, Any]:
    content = node.get("content") if isinstance(node, dict) and node.get("__loader__") == "DictNode" else None
    return content if isinstance(content, dict) else {}


def _check_attributes(checker: _Checker) -> None:
    """Refuse state that would take the place of a method: whatever is stored there would be called."""
    for name, keys in checker.attributes.items():
        module, _, kind = name.rpartition(".")
        try:
            cls = getattr(importlib.import_module(module), kind)
        except (ImportError, AttributeError) as error:
            raise checker.damaged(f"the installed scikit-learn has no {name}") from error
        for key in keys:
            if key.startswith("__") or hasattr(inspect.getattr_static(cls, key, None), "__get__"):
                raise checker.damaged(f"it replaces {escape_unprintable(key)[:60]} of {name}")


def _bind_loss_module(names: set[str]) -> None:
    # scikit-learn before 1.7 calls its compiled module "_loss"; imported by that name it could be a file of the folder
    if any(name.startswith("_loss.") for name in names):
        sys.modules["_loss"] = importlib.import_module("sklearn._loss._loss")


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
