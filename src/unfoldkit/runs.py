"""Run directories: atomic writes, a manifest of hashes, one process at a time, resume by fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfoldkit.errors import ExitCode, UnfoldError, broken, fail

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = "unfoldkit.manifest/1"


def sha256(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def fingerprint(*parts: Any) -> str:
    """Return a hash of JSON-able values, equal for equal values whatever the order of keys."""
    return sha256(json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str).encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that a reader, or a crash, sees the old file or the new one, never a part.

    Raises:
        UnfoldError: the disk is full or the folder cannot be written (exit code 3); the old file is kept.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise broken(f"cannot write: {error.strerror}", file=str(path), hint="nothing was changed") from error


@dataclass(frozen=True, slots=True)
class RunDir:
    """A folder that holds what one run leaves behind.

    Every file is listed in ``manifest.json`` with its SHA-256 and the fingerprint of what it was made from.
    A file that is not listed does not count: it was being written when a process died.
    """

    path: Path

    def write(self, name: str, data: bytes, *, made_from: str = "") -> None:
        """Store ``data`` under ``name`` and list it in the manifest."""
        if name in self.files():
            self._save({key: entry for key, entry in self.files().items() if key != name})
        write_atomically(self._inside(name), data)
        entry = {"sha256": sha256(data), "bytes": len(data), "made_from": made_from}
        self._save(self.files() | {name: entry})

    def read(self, name: str) -> bytes:
        """Return the bytes of a listed file.

        Raises:
            UnfoldError: the file is not in the run, cannot be read, or its hash does not match.
        """
        entry = self.files().get(name)
        if entry is None:
            raise fail(f"no {name} in this run", file=str(self.path), hint="run the earlier verb first")
        data = _read(self._inside(name))
        if sha256(data) != entry["sha256"]:
            raise fail(
                "the file was changed after it was written: its SHA-256 does not match the manifest",
                file=str(self._inside(name)),
                hint="delete it from the run, or the run, and train again",
            )
        return data

    def has(self, name: str, *, made_from: str | None = None) -> bool:
        """Whether ``name`` is listed and there, and (if given) was made from the same fingerprint."""
        entry = self.files().get(name)
        return entry is not None and made_from in (None, entry["made_from"]) and self._inside(name).is_file()

    def once(self, name: str, made_from: str, make: Callable[[], bytes]) -> bytes:
        """Return the stored bytes if they were made from the same fingerprint; else make and store them."""
        if not self.has(name, made_from=made_from):
            self.write(name, make(), made_from=made_from)
        return self.read(name)

    def files(self) -> dict[str, Any]:
        """Return the manifest's entries by file name; empty for a new run."""
        path = self.path / MANIFEST
        if not path.exists():
            return {}
        try:
            data = json.loads(_read(path))
            if data["schema"] == MANIFEST_SCHEMA and isinstance(data["files"], dict):
                return dict(data["files"])
        except (ValueError, KeyError, TypeError):
            pass
        raise fail("the manifest is damaged", file=str(path), hint="delete the run and train again")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the kernel frees it when the process dies, however it dies."""
        import fcntl

        self._make()
        with (self.path / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise fail(
                    "another process is using this run", file=str(self.path), hint="wait, or --run DIR"
                ) from error
            yield

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise fail(
                f"cannot make the run folder: {error.strerror}", file=str(self.path), hint="--run DIR"
            ) from error

    def _inside(self, name: str) -> Path:
        path = self.path / name
        if self.path.resolve() not in path.resolve().parents:
            raise fail(f"{name!r} leads out of the run", file=str(self.path))
        return path

    def _save(self, files: Mapping[str, Any]) -> None:
        data = {"schema": MANIFEST_SCHEMA, "files": dict(sorted(files.items()))}
        write_atomically(self.path / MANIFEST, (json.dumps(data, indent=1) + "\n").encode())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnfoldError(
            *fail(f"cannot read: {error.strerror}", file=str(path)).diagnostics, code=ExitCode.USAGE
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
