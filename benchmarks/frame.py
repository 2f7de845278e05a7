"""What every benchmark shares: discovery, the machine, the versions, and the JSON object at the end.

A benchmark is a module of this folder with ``run(quick, seed, data) -> dict``: ``metrics``, and if it likes ``peers``,
``tables``, ``aims``, ``versions`` and ``notes``. One that does not accept ``data=None`` needs the shared data.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import platform
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
Benchmark = Callable[[bool, int, Path | None], dict[str, Any]]
RAY_ENVIRONMENT = {"RAY_worker_niceness": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
"""Ray gives its workers a lower priority than all else on the machine, which a timed run must not have."""
PACKAGES = ("unfoldkit", "numpy", "scikit-learn", "xgboost")


class NeedsDataError(Exception):
    """The benchmark needs the shared data, which is not here."""


class NeedsExtraError(Exception):
    """The benchmark needs an extra that is not installed."""


def need(module: str, extra: str) -> None:
    """Stop unless ``module`` is installed.

    Raises:
        NeedsExtraError: it is not; the message names the extra.
    """
    if importlib.util.find_spec(module) is None:
        raise NeedsExtraError(f"{module} is not installed: pip install '.[{extra}]'")


def missing_package(module: str, pyproject: Path = FOLDER.parent / "pyproject.toml") -> str:
    """Return a message that names the dependency group or the extra that brings a module."""
    package = module.partition(".")[0].replace("_", "-")
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    for group, requirements in project["dependency-groups"].items():
        if package in {_distribution(item) for item in requirements if isinstance(item, str)}:
            return f"{package} is not installed: pip install --group {group}"
    for extra, requirements in project["project"]["optional-dependencies"].items():
        if package in {_distribution(item) for item in requirements}:
            return f"{package} is not installed: pip install '.[{extra}]'"
    return f"{package} is not installed: pip install {package}"


def _distribution(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0].lower()


def names(folder: Path = FOLDER) -> list[str]:
    """Return the benchmarks of ``folder``: its modules that define ``run``."""
    return [path.stem.replace("_", "-") for path in sorted(folder.glob("[a-z]*.py")) if _has_run(path)]


def summary(name: str) -> str:
    """Return the first line of the benchmark's docstring, without importing it."""
    tree = ast.parse((FOLDER / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split("\n", maxsplit=1)[0]


def measure(name: str, *, quick: bool, seed: int) -> dict[str, Any]:
    """Run a benchmark and return the object that is printed.

    Raises:
        NeedsDataError: it needs the shared data, which is not here.
        NeedsExtraError: it needs a package that is not installed.
    """
    try:
        run: Benchmark = importlib.import_module(f"benchmarks.{name.replace('-', '_')}").run
        data = data_folder(os.environ)
        if data is None and needs_data(run):
            raise NeedsDataError(f"{name} needs the shared data: set UNFOLD_SHARED or lay it at ../shared")
        busy = load()
        found = run(quick, seed, data)
    except ModuleNotFoundError as error:
        raise NeedsExtraError(missing_package(error.name or "")) from error
    facts = {"name": name, "quick": quick, "seed": seed, "metrics": found["metrics"], "peers": found.get("peers", {})}
    rest = {key: value for key, value in found.items() if key not in {"metrics", "peers", "versions", "notes"}}
    about = {
        "machine": machine() | {"load": busy},
        "versions": versions() | found.get("versions", {}),
        "notes": found.get("notes", []),
    }
    return facts | rest | about


def needs_data(run: Benchmark) -> bool:
    """Whether the annotation of ``data`` leaves ``None`` out."""
    return "None" not in str(inspect.signature(run).parameters["data"].annotation)


def data_folder(environment: Mapping[str, str]) -> Path | None:
    """Return the folder of the shared data: ``UNFOLD_SHARED``, or ``shared`` beside the checkout."""
    shared = Path(environment.get("UNFOLD_SHARED") or FOLDER.parents[1] / "shared")
    return shared / "data" if (shared / "data").is_dir() else None


def machine() -> dict[str, Any]:
    """Return what a figure depends on: processor, cores, memory in GiB, system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {"processor": _processor(), "cores": cores, "memory_gib": gib and round(gib), "system": platform.system()}


def load() -> float | None:
    """Return how many processes wanted a core in the last minute: above the number of cores, times are inflated."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def versions() -> dict[str, str]:
    """Return the versions that a figure depends on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _has_run(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(item, ast.FunctionDef) and item.name == "run" for item in tree.body)
