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
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from unfoldkit.errors import Diagnostic, ExitCode, UnfoldError, user_error
from unfoldkit.safe_io.files import MAX_TEXT_BYTES, decoding, follow_links, is_deep, read_bytes

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = "unfoldkit.manifest/1"
_ENTRY_KEYS = {"sha256", "made_from"}
_PART_SUFFIX = ".part"
_PART_PATTERN = f".*.{'[0-9a-f]' * 16}{_PART_SUFFIX}"
_STALE_AFTER_S = 3600.0
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def sha256(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def encode_text(text: str) -> bytes:
    """Encode ``text`` as UTF-8; lone surrogates, as in paths of another encoding, become escapes."""
    return text.encode(errors="backslashreplace")


def fingerprint(*parts: Any) -> str:
    """Return a hash of values that JSON can hold; equal values have equal hashes in any order of keys."""
    return sha256(json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str).encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that readers, and a crash, see the old file or the new one, never a part.

    A symbolic link stays, and its target is written. A device or a pipe is written to directly.

    Raises:
        UnfoldError: The disk is full (exit code 3), or the path is not writable (2). The old file is kept.
    """
    if _is_stream(path):
        _write_stream(path, data)
        return
    path = follow_links(path) if path.is_symlink() else path
    with _temporary_file(path) as temporary:
        _write_and_sync(temporary, data)
        _replace(temporary, path)


def _is_stream(path: Path) -> bool:
    # a rename would replace /dev/null by a plain file, for every process on the machine
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
    return False


def _write_stream(path: Path, data: bytes) -> None:
    try:
        with path.open("wb") as stream:
            stream.write(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _write_error(error, path) from error


@contextlib.contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a name has at most 255 bytes, and a character up to 4
        temporary = path.parent / f".{path.name[:50]}.{secrets.token_hex(8)}{_PART_SUFFIX}"
        temporary.touch(exist_ok=False)
        yield temporary
    except OSError as error:
        raise _write_error(error, path) from error
    finally:
        if temporary is not None:
            # a read-only file system refuses even a file that is not there: what failed first is reported
            with contextlib.suppress(OSError):
                temporary.unlink()


def _write_error(error: OSError, path: Path) -> UnfoldError:
    return _describe(error, "cannot write", path, "the old contents are unchanged")


def _describe(error: OSError, problem: str, path: Path, hint: str) -> UnfoldError:
    code = ExitCode.INTERNAL if error.errno in _DISK_ERRORS else ExitCode.USAGE
    return UnfoldError(Diagnostic(f"{problem}: {error.strerror}", str(path), hint=hint), code=code)


def _write_and_sync(temporary: Path, data: bytes) -> None:
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _replace(temporary: Path, path: Path) -> None:
    # keep the permissions of the old file; those of a new file follow the umask
    if path.exists():
        temporary.chmod(stat.S_IMODE(path.stat().st_mode))
    temporary.replace(path)
    _sync_folder(path.parent)


@dataclass(frozen=True, slots=True)
class RunDir:
    """The folder of one run.

    ``manifest.json`` lists every file with its SHA-256 and the fingerprint of its inputs. A file that is not listed
    does not count: it was being written when a process died.
    """

    path: Path

    @property
    def word(self) -> str:
        """The folder, quoted for a shell command."""
        return shlex.quote(str(self.path))

    def write(self, name: str, data: bytes, *, made_from: str = "") -> None:
        """Store ``data`` under ``name`` and list it in the manifest; what is stored already is left as it is.

        Raises:
            UnfoldError: See :func:`write_atomically`.
        """
        path = self.resolve(name)
        entry = {"sha256": sha256(data), "bytes": len(data), "made_from": made_from}
        # a verb that begins on a full disk loses neither the spec nor its entry
        if self.files().get(name) == entry and path.is_file() and read_bytes(path) == data:
            return
        with _temporary_file(path) as temporary:
            _write_and_sync(temporary, data)
            # only now, so that a full disk leaves the old file and its entry
            if name in self.files():
                self._save({key: entry for key, entry in self.files().items() if key != name})
            _replace(temporary, path)
        self._save(self.files() | {name: entry})

    def read(self, name: str) -> bytes:
        """Return the bytes of a listed file.

        Raises:
            UnfoldError: The file is not in the run, is not readable, or its hash does not match.
        """
        entry = self.files().get(name)
        if entry is None:
            raise user_error(f"no {name} in this run", file=str(self.path), hint="run the earlier verb first")
        data = read_bytes(self.resolve(name))
        if sha256(data) != entry["sha256"]:
            raise user_error(
                "the file was changed after it was written: its SHA-256 does not match the manifest",
                file=str(self.resolve(name)),
                hint="delete the file or the run, and repeat the verb that wrote it",
            )
        return data

    @contextlib.contextmanager
    def decoding(self, name: str, what: str = "") -> Iterator[bytes]:
        """Yield the bytes of a listed file; what decoding them raises becomes an error with the file's name.

        Args:
            name: The file.
            what: What the file should hold, for the error.

        Raises:
            UnfoldError: See :meth:`read`; or the file holds something else.
        """
        data = self.read(name)
        with decoding(str(self.resolve(name)), what):
            yield data

    def has(self, name: str, *, made_from: str | None = None) -> bool:
        """Whether ``name`` is listed and exists, and was made from the same fingerprint, if one is given."""
        entry = self.files().get(name)
        return entry is not None and made_from in (None, entry["made_from"]) and self.resolve(name).is_file()

    def once(self, name: str, made_from: str, make: Callable[[], bytes]) -> bytes:
        """Return the stored bytes if they were made from the same fingerprint; otherwise make and store them."""
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
                message = f"another version wrote this run: its manifest has the schema {data['schema']}"
                raise user_error(
                    message, file=str(path), hint=f"this one reads {MANIFEST_SCHEMA}; --run DIR begins another"
                )
            entries = dict(data["files"].items())
            if data["schema"] == MANIFEST_SCHEMA and all(entry.keys() >= _ENTRY_KEYS for entry in entries.values()):
                return entries
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise user_error("the manifest is damaged", file=str(path), hint="delete the run and begin it again")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run for this process; the kernel releases the lock when the process dies.

        Incomplete files that killed processes left more than an hour ago are removed.

        Raises:
            UnfoldError: Another process holds the lock, or the folder is not writable.
        """
        with self._lock_file() as lock:
            try:
                _lock(lock.fileno())
            except OSError as error:
                raise user_error(
                    "another process is using this run", file=str(self.path), hint="wait, or --run DIR"
                ) from error
            _remove_stale_parts(self.path)
            yield

    def is_locked(self) -> bool:
        """Whether another process holds the lock; a verb that starts in the same millisecond is refused."""
        try:
            with _open_lock(self.path / ".lock") as lock:
                _lock(lock.fileno())
        except OSError:
            return (self.path / ".lock").exists()
        return False

    def _lock_file(self) -> IO[str]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return _open_lock(self.path / ".lock")
        except OSError as error:
            raise _describe(error, "cannot write to the run folder", self.path, "--run DIR") from error

    def resolve(self, name: str) -> Path:
        """Return the path of a file of the run.

        Raises:
            UnfoldError: It lies outside of the run, or a link leads there.
        """
        path = self.path / name
        if follow_links(self.path) not in follow_links(path).parents:
            raise user_error(f"{name!r} is outside of the run", file=str(self.path))
        return path

    def _save(self, files: Mapping[str, Any]) -> None:
        data = {"schema": MANIFEST_SCHEMA, "files": dict(sorted(files.items()))}
        write_atomically(self.path / MANIFEST, (json.dumps(data, indent=1) + "\n").encode())


def find_run(file: Path) -> Path | None:
    """Return the folder of the run that a file belongs to; ``None`` if no manifest lists it."""
    file = follow_links(file)
    for folder in file.parents:
        with contextlib.suppress(UnfoldError):
            # a manifest of another program does not count
            if (folder / MANIFEST).is_file() and file.relative_to(folder).as_posix() in {
                MANIFEST,
                *RunDir(folder).files(),
            }:
                return folder
    return None


def _open_lock(path: Path) -> IO[str]:
    # opening a pipe would wait until another process reads from it
    return open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags | _NONBLOCK, 0o666))


def _lock(descriptor: int) -> None:
    """Lock a file for this process until it is closed.

    Raises:
        OSError: Another process has it.
    """
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_of_another_version(manifest: Any) -> bool:
    schema = str(manifest.get("schema"))
    return schema != MANIFEST_SCHEMA and schema.startswith(MANIFEST_SCHEMA.partition("/")[0] + "/")


def _remove_stale_parts(folder: Path) -> None:
    # a worker that outlived a killed process may still be writing a younger file
    for path in folder.rglob(_PART_PATTERN):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_AFTER_S:
                path.unlink()


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        # Windows opens no folder, and journals names by itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
