"""Packages that only extras bring: which of them is missing, and the command that installs it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from unfoldkit.errors import UnfoldError, user_error

DISTRIBUTION_NAMES = {
    "PIL": "pillow", "botocore": "boto3", "google": "protobuf", "grpc": "grpcio", "sklearn": "scikit-learn",
}  # fmt: skip
"""Distributions by module, where their names differ."""


def require_packages(user: str, *modules: str, file: str = "", key: str = "") -> None:
    """Check that packages can be imported, before what needs them begins.

    Args:
        user: What needs them, such as ``a Parquet file``.
        modules: Their top-level modules.
        file: The file that the error names.
        key: The key of the spec that the error names.

    Raises:
        UnfoldError: One is not installed (exit code 2); the hint is the command that installs it.
    """
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise _missing_package(name, find_extra(name), user=user, file=file, key=key)


def explain_missing_package(
    error: ModuleNotFoundError, extra: str | None = None, *, owner: str = "unfoldkit", user: str = ""
) -> UnfoldError:
    """Return the error for a package that is not installed, with the command that installs it.

    Args:
        error: What the import raised.
        extra: The extra that brings the package; by default the smallest extra of unfoldkit which does.
        owner: The distribution with the extra.
        user: What needs the package; empty for the command as a whole.
    """
    name = str(error.name).partition(".")[0]
    return _missing_package(name, extra or find_extra(name), owner, user=user or "this")


@contextmanager
def explain_missing_packages(extra: str | None) -> Iterator[None]:
    """Turn the failed import of a package that an extra brings into an error which names the extra.

    Args:
        extra: The extra of the kind that runs, which is named if it brings the package.

    Raises:
        UnfoldError: The package is not installed (exit code 2).
    """
    try:
        yield
    except ModuleNotFoundError as error:
        found = find_extra(str(error.name).partition(".")[0], extra)
        if not found:
            raise
        raise explain_missing_package(error, found) from error


def find_extra(module: str, preferred: str | None = None) -> str:
    """Return the extra of unfoldkit that brings the distribution of a module; empty if none does.

    Args:
        module: The top-level module.
        preferred: The extra to return if several do; without it the one with the fewest packages.
    """
    wanted, packages = _normalize(DISTRIBUTION_NAMES.get(module, module)), list_extras()
    matches = [extra for extra, names in packages.items() if wanted in names]
    if preferred in matches:
        return str(preferred)
    return min(matches, key=lambda extra: (len(packages[extra]), extra), default="")


def list_extras() -> dict[str, set[str]]:
    """Return the packages that each extra of unfoldkit names; ``unfoldkit`` for one that includes other extras."""
    packages: dict[str, set[str]] = {}
    for line in importlib.metadata.requires("unfoldkit") or ():
        requirement, _, marker = line.partition(";")
        extra, name = re.search(r"extra == ['\"]([\w-]+)", marker), re.match(r"[\w.-]+", requirement)
        if extra and name:
            packages.setdefault(extra[1], set()).add(_normalize(name[0]))
    return packages


def _normalize(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _missing_package(
    name: str, extra: str, owner: str = "unfoldkit", *, user: str, file: str = "", key: str = ""
) -> UnfoldError:
    hint = install_command(extra, owner) if extra else "pip install it"
    message = f"{user} needs the package {DISTRIBUTION_NAMES.get(name, name)!r}, which is not installed"
    return user_error(message, file=file, key=key, hint=hint)


def install_command(extra: str, owner: str = "unfoldkit") -> str:
    """Return the command that installs an extra: from the path that its distribution came from, if that is still there.

    Args:
        extra: The extra.
        owner: The distribution with the extra.
    """
    source = owner
    with suppress(importlib.metadata.PackageNotFoundError, ValueError):
        # PEP 610
        text = importlib.metadata.distribution(owner).read_text("direct_url.json")
        url = urlsplit(json.loads(text)["url"] if text else "")
        path = url2pathname(url.path)
        if url.scheme == "file" and Path(path).exists():
            source = path
    return f"pip install '{source}[{extra}]'"
