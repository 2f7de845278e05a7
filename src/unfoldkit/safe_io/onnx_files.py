"""Find the files beside an ONNX model that hold its tensors, before ONNX Runtime opens them.

A model names these files itself. ONNX Runtime before 1.26 reads any file that it names, and serves it as weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unfoldkit.errors import user_error
from unfoldkit.safe_io.files import follow_links

_KEY = b"location"
"""The key of a file name in a tensor that is stored outside the model."""
HINT = "keep the model and its external data in one folder"


def require_data_within(content: bytes, file: str, folder: Path | None) -> None:
    """Refuse a model with a tensor in a file that is not inside a folder.

    Args:
        content: The model.
        file: Its name, for the error.
        folder: Where such files may be; ``None`` where the model has to be complete.

    Raises:
        UnfoldError: A file lies elsewhere, or such a model cannot be read.
    """
    for location in list_data_files(content, file):
        if folder is None or not lies_within(folder, location):
            raise user_error(f"its external data {location!r} lies outside its folder", file=file, hint=HINT)


def list_data_files(content: bytes, file: str) -> list[str]:
    """Return the names of the files that hold tensors of a stored model, sorted; empty names included.

    Raises:
        UnfoldError: Such a model cannot be read.
    """
    if _KEY not in content:
        return []
    import onnx

    try:
        return list_external_files(onnx.load_model_from_string(content))
    # protobuf's error has no public base
    except Exception as error:
        raise user_error("not an ONNX model", file=file, hint=" ".join(str(error).split())[:120]) from error


def list_external_files(model: Any) -> list[str]:
    """Return the names of the files that hold tensors of a model, sorted; empty names included."""
    parts = (model.graph, *model.functions)
    return sorted({location for part in parts for location in _list_of_graph(part)})


def lies_within(folder: Path, location: str) -> bool:
    """Whether a relative path names something inside a folder; links count by where they lead."""
    folder = follow_links(folder)
    path = follow_links(folder / location)
    return bool(location) and not Path(location).is_absolute() and path != folder and path.is_relative_to(folder)


def _list_of_graph(graph: Any) -> Iterator[str]:
    """Yield the file of every tensor that is stored outside the model, those of nested graphs included.

    Args:
        graph: A graph, or a function of the model, which has no initializers.
    """
    tensors = [*getattr(graph, "initializer", ())]
    for sparse in getattr(graph, "sparse_initializer", ()):
        tensors += [sparse.values, sparse.indices]
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                tensors += [sparse.values, sparse.indices]
            if attribute.HasField("g"):
                yield from _list_of_graph(attribute.g)
            for nested in attribute.graphs:
                yield from _list_of_graph(nested)
    for tensor in tensors:
        if tensor.data_location == tensor.EXTERNAL:
            yield next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
