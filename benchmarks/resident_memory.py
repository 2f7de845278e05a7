"""What a process really holds of the shipped heart-beat family, in one of three forms.

Run as a program, in a process of its own: ``python -m benchmarks.resident_memory WAY`` prints the bytes that each of
several families adds to the resident memory, after every member has computed one batch of 1 row and one of 512.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.frame import FOLDER

if TYPE_CHECKING:
    from unfold_supernet.networks.supernet import Supernet

WAYS = ("views", "modules", "sessions")
"""Views of shared weights; a torch module for each member; a session of ONNX Runtime for each."""
FAMILIES = 20
"""So many that pages of 4 KB do not matter."""
BATCHES = (1, 512)


def measure_resident(way: str) -> float:
    """Return the bytes that a family adds to a process of its own."""
    command = [sys.executable, "-m", "benchmarks.resident_memory", way]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=FOLDER.parent)
    return float(json.loads(done.stdout)["bytes"])


def main(way: str) -> None:
    """Open families in one form and print what each of them adds."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        open_family = list_ways(Path(folder))[way]
        # what is loaded once, whatever is served
        warm = [open_family() for _ in range(2)]
        before = _read_settled_bytes()
        held = [open_family() for _ in range(FAMILIES)]
        added = _read_settled_bytes() - before
    print(json.dumps({"bytes": added / len(held), "warm": len(warm)}))


def list_ways(folder: Path) -> dict[str, Callable[[], Any]]:
    """List what opens the family from a run in ``folder``, by way; the weights are untrained."""
    from benchmarks.supernet_switch import build_family
    from unfold_supernet.family import checkpoint
    from unfold_supernet.networks import onnx_export, standalone
    from unfoldkit.api import RunDir

    family = build_family({}, 0)
    norms = {name: bound.statistics for name, bound in family.bound.items()}
    checkpoint.write_supernet(RunDir(folder), family.space, dict(family.weights), norms, "resident memory")
    modules = {name: standalone.extract_model(family.space, bound) for name, bound in family.bound.items()}
    states = {name: standalone.serialize_state(module) for name, module in modules.items()}
    models = [onnx_export.export_onnx(family.space, module) for module in modules.values()]
    openers = (partial(_open_views, folder), partial(_open_modules, family, states), partial(_open_sessions, models))
    return dict(zip(WAYS, openers, strict=True))


def _open_views(folder: Path) -> Supernet:
    from unfold_supernet.family import checkpoint
    from unfoldkit.api import RunDir

    supernet = checkpoint.read_supernet(RunDir(folder))
    _answer(supernet.bound.values())
    return supernet


def _open_modules(family: Supernet, states: Mapping[str, bytes]) -> list[Any]:
    from safetensors.torch import load

    from unfold_supernet.networks import standalone

    modules = []
    for name, state in states.items():
        module = standalone.build_empty_model(family.space, family.bound[name])
        module.load_state_dict(load(state))
        modules.append(module)
    _answer(modules)
    return modules


def _open_sessions(models: Sequence[bytes]) -> list[Any]:
    from unfold_supernet.family.onnx_session import open_session

    sessions = [open_session(content) for content in models]

    def bind(session: Any) -> Callable[[Any, Any], Any]:
        return lambda x, extra: session.run(None, {"x": x.numpy(), "extra": extra.numpy()})

    _answer([bind(session) for session in sessions])
    return sessions


def _answer(models: Iterable[Callable[[Any, Any], Any]]) -> None:
    import torch

    for model in models:
        for rows in BATCHES:
            model(torch.zeros(rows, 1, 128), torch.zeros(rows, 2))


def _read_settled_bytes() -> int:
    """Return the resident memory after all that is free was given back to the system."""
    from unfold_supernet.family.onnx_session import read_resident_bytes

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return read_resident_bytes()


if __name__ == "__main__":
    main(sys.argv[1])
