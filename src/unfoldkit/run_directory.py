"""Run directories: atomic writes, a manifest of hashes, one process at a time, resume by fingerprint."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shlex
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from unfoldkit.errors import Diagnostic, ExitCode, UnfoldError, user_error
from unfoldkit.safe_io.files import MAX_TEXT_BYTES, decoding, is_deep, read_bytes

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = "unfoldkit.manifest/1"
_ENTRY = {"sha256", "made_from"}
_PART = ".part"
_PARTS = f".*.{'[0-9a-f]' * 16}{_PART}"
_DEAD_AFTER_S = 3600.0
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def sha256(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def encoded(text: str) -> bytes:
    """Return ``text`` as UTF-8; what has none, such as a path in another encoding, is written as its escape."""
    return text.encode(errors="backslashreplace")


def fingerprint(*parts: Any) -> str:
    """Return a hash of JSON-able values, equal for equal values whatever the order of keys."""
    return sha256(json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str).encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that a reader, or a crash, sees the old file or the new one, never a part.

    A link stays, and the file that it leads to is written; a device or a pipe is written to, and stays what it is.

    Raises:
        UnfoldError: the disk is full (exit code 3), or the place cannot be written to (2); the old file is kept.
    """
    if _is_stream(path):
        _pour(path, data)
        return
    # not Path.resolve, which fails where links lead in a circle
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    with _writing(path) as temporary:
        _stage(temporary, data)
        _settle(temporary, path)


def _is_stream(path: Path) -> bool:
    # a rename would put a plain file in the place of /dev/null, for every process on the machine
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
    return False


def _pour(path: Path, data: bytes) -> None:
    try:
        with path.open("wb") as stream:
            stream.write(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _refused(error, path) from error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name[:80]}.{secrets.token_hex(8)}{_PART}"
        temporary.touch(exist_ok=False)
        yield temporary
    except OSError as error:
        raise _refused(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _refused(error: OSError, path: Path) -> UnfoldError:
    code = ExitCode.INTERNAL if error.errno in _DISK else ExitCode.USAGE
    return UnfoldError(
        Diagnostic(f"cannot write: {error.strerror}", str(path), hint="what was there is unchanged"), code=code
    )


def _stage(temporary: Path, data: bytes) -> None:
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _settle(temporary: Path, path: Path) -> None:
    # who may read the old file may read the new one; that of a new file is for the umask to say
    if path.exists():
        temporary.chmod(stat.S_IMODE(path.stat().st_mode))
    temporary.replace(path)
    _sync_folder(path.parent)


@dataclass(frozen=True, slots=True)
class RunDir:
    """A folder that holds what one run leaves behind.

    Every file is listed in ``manifest.json`` with its SHA-256 and the fingerprint of what it was made from.
    A file that is not listed does not count: it was being written when a process died.
    """

    path: Path

    @property
    def word(self) -> str:
        """The folder as a word of a command that a shell takes."""
        return shlex.quote(str(self.path))

    def write(self, name: str, data: bytes, *, made_from: str = "") -> None:
        """Store ``data`` under ``name`` and list it in the manifest.

        Raises:
            UnfoldError: see :func:`write_atomically`.
        """
        path = self._inside(name)
        with _writing(path) as temporary:
            _stage(temporary, data)
            # only now: a disk that is full leaves the old file, and its entry
            if name in self.files():
                self._save({key: entry for key, entry in self.files().items() if key != name})
            _settle(temporary, path)
        entry = {"sha256": sha256(data), "bytes": len(data), "made_from": made_from}
        self._save(self.files() | {name: entry})

    def read(self, name: str) -> bytes:
        """Return the bytes of a listed file.

        Raises:
            UnfoldError: the file is not in the run, cannot be read, or its hash does not match.
        """
        entry = self.files().get(name)
        if entry is None:
            raise user_error(f"no {name} in this run", file=str(self.path), hint="run the earlier verb first")
        data = read_bytes(self._inside(name))
        if sha256(data) != entry["sha256"]:
            raise user_error(
                "the file was changed after it was written: its SHA-256 does not match the manifest",
                file=str(self._inside(name)),
                hint="delete it from the run, or the run, and train again",
            )
        return data

    @contextlib.contextmanager
    def decoding(self, name: str, what: str = "") -> Iterator[bytes]:
        """Yield the bytes of a listed file; what decoding them raises becomes an error with the file's name.

        Raises:
            UnfoldError: see :meth:`read`, or the file holds something else.
        """
        data = self.read(name)
        with decoding(str(self._inside(name)), what):
            yield data

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
        content = read_bytes(path, max_bytes=MAX_TEXT_BYTES)
        try:
            data = json.loads(content)
            if is_deep(data):
                raise ValueError("nested too deep")  # noqa: TRY301
            if _is_of_another_version(data):
                message = f"another version wrote this run: its manifest is of schema {data['schema']}"
                raise user_error(
                    message, file=str(path), hint=f"this one reads {MANIFEST_SCHEMA}; --run DIR begins another"
                )
            entries = dict(data["files"].items())
            if data["schema"] == MANIFEST_SCHEMA and all(entry.keys() >= _ENTRY for entry in entries.values()):
                return entries
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise user_error("the manifest is damaged", file=str(path), hint="delete the run and train again")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the kernel frees it when the process dies, however it dies.

        What processes that were killed left half-written more than an hour ago is removed.
        """
        import fcntl

        with self._lock_file() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise user_error(
                    "another process is using this run", file=str(self.path), hint="wait, or --run DIR"
                ) from error
            _sweep(self.path)
            yield

    def _lock_file(self) -> IO[str]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return (self.path / ".lock").open("a")
        except OSError as error:
            raise user_error(
                f"cannot write to the run folder: {error.strerror}", file=str(self.path), hint="--run DIR"
            ) from error

    def _inside(self, name: str) -> Path:
        path = self.path / name
        if self.path.resolve() not in path.resolve().parents:
            raise user_error(f"{name!r} leads out of the run", file=str(self.path))
        return path

    def _save(self, files: Mapping[str, Any]) -> None:
        data = {"schema": MANIFEST_SCHEMA, "files": dict(sorted(files.items()))}
        write_atomically(self.path / MANIFEST, (json.dumps(data, indent=1) + "\n").encode())


def _is_of_another_version(manifest: Any) -> bool:
    schema = str(manifest.get("schema"))
    return schema != MANIFEST_SCHEMA and schema.startswith(MANIFEST_SCHEMA.partition("/")[0] + "/")


def _sweep(folder: Path) -> None:
    # what a killed process was writing; a worker that outlived it may still be at a younger one
    for path in folder.rglob(_PARTS):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _DEAD_AFTER_S:
                path.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
