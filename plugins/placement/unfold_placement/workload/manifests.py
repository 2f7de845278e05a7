"""Kubernetes objects of a file: JSON or YAML, lists of ``kubectl get -o json``, several documents one after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unfold_placement.workload.json_stream import read_documents
from unfoldkit.api import UnfoldError, did_you_mean, user_error

COMMAND = "kubectl get clusterqueues,cohorts,resourceflavors,localqueues,workloads -A -o json"
"""What prints everything that a replay of Kueue needs."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """An object of a file; its accessors report a fault with the object's name and the path of the field.

    Attributes:
        body: The object, or a part of it.
        path: The file.
        label: Kind and name of the object.
        field_path: Path of this part within the object; empty for all of it.
    """

    body: dict[str, Any] = field(repr=False)
    path: Path
    label: str = ""
    field_path: str = ""

    @property
    def kind(self) -> str:
        """The kind of the object."""
        return str(self.body.get("kind", ""))

    @property
    def group(self) -> str:
        """The API group of the object."""
        return str(self.body.get("apiVersion", "")).rpartition("/")[0]

    def fault(self, key: str, message: str, hint: str = "") -> UnfoldError:
        """Build the error about a field."""
        where = ".".join(part for part in (self.field_path, key) if part)
        return user_error(message, file=str(self.path), key=f"{self.label}: {where}", hint=hint)

    def part(self, key: str) -> Manifest:
        """Return a mapping below it, an empty one if it is missing.

        Raises:
            UnfoldError: The field is no mapping.
        """
        node = self
        for name in key.split("."):
            value = node.body.get(name)
            if value is not None and not isinstance(value, dict):
                raise node.fault(name, f"{value!r:.60} is not a mapping")
            where = ".".join(part for part in (node.field_path, name) if part)
            node = Manifest(value or {}, self.path, self.label, where)
        return node

    def parts(self, key: str) -> list[Manifest]:
        """Return the mappings of a list below it, none if it is missing.

        Raises:
            UnfoldError: The field is not a list of mappings.
        """
        value = self.body.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.fault(key, "not a list of mappings")
        where = ".".join(part for part in (self.field_path, key) if part)
        return [Manifest(item, self.path, self.label, f"{where}[{index}]") for index, item in enumerate(value)]

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text; a field without ``default`` must be there.

        Raises:
            UnfoldError: The field is missing or no text.
        """
        value = self.body.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or (default is None and not value):
            raise self.fault(key, "is missing" if value is None else f"{value!r:.60} is not a text")
        return value

    def choice(self, key: str, options: tuple[str, ...], default: str) -> str:
        """Return one of some words.

        Raises:
            UnfoldError: It is another one.
        """
        value = self.text(key, default) or default
        if value not in options:
            hint = did_you_mean(value, options) or f"write one of {', '.join(options)}"
            raise self.fault(key, f"{value!r} is unknown", hint)
        return value

    def integer(self, key: str, default: int, *, least: int | None = 0) -> int:
        """Return an integer of the manifest, or the default where the key is absent.

        Raises:
            UnfoldError: It is none, or smaller than ``least``.
        """
        value = self.body.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
            raise self.fault(key, f"{value!r:.60} is not a number" + ("" if least is None else f" of at least {least}"))
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """Return a list of texts, an empty one if it is missing.

        Raises:
            UnfoldError: It is not a list of texts.
        """
        values = self.body.get(key)
        if values is None:
            return ()
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.fault(key, f"{values!r:.60} is not a list of texts")
        return tuple(values)

    def texts(self, key: str) -> dict[str, str]:
        """Return a mapping of texts, such as labels.

        Raises:
            UnfoldError: It is none.
        """
        values = self.part(key).body
        for name, value in values.items():
            if not isinstance(value, str):
                raise self.part(key).fault(name, f"{value!r:.60} is not a text")
        return values


def read_manifests(path: Path) -> list[Manifest]:
    """Read the objects of a file; lists are expanded.

    Raises:
        UnfoldError: The file cannot be read, or is neither JSON nor YAML.
    """
    manifests: list[Manifest] = []
    for content in read_documents(path, COMMAND):
        manifests += _expand(content, path, f"item {len(manifests)}")
    return manifests


def _expand(content: Any, path: Path, label: str) -> Iterator[Manifest]:
    if isinstance(content, list):
        for index, item in enumerate(content):
            yield from _expand(item, path, f"{label}[{index}]")
        return
    if not isinstance(content, dict):
        raise user_error(f"{content!r:.60} is not a Kubernetes object", file=str(path), key=label, hint=COMMAND)
    kind = content.get("kind")
    items = content.get("items", ())
    # programs in Go print null for a list without items
    if isinstance(items, list | None) and (kind is None or str(kind).endswith("List")):
        item_kind = str(kind or "").removesuffix("List")
        for index, item in enumerate(items or ()):
            # the items of a typed list need not repeat their kind
            shared = {"apiVersion": content.get("apiVersion", ""), "kind": item_kind} if item_kind else {}
            yield from _expand({**shared, **item} if isinstance(item, dict) else item, path, f"items[{index}]")
        return
    meta = content.get("metadata")
    name = meta.get("name") if isinstance(meta, dict) else None
    if not isinstance(kind, str) or not isinstance(name, str) or not name:
        raise user_error("an object needs kind and metadata.name", file=str(path), key=label, hint=COMMAND)
    space = meta.get("namespace") if isinstance(meta, dict) else None
    yield Manifest(content, path, f"{kind} {space}/{name}" if space else f"{kind} {name}")
