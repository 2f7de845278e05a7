"""Archives with bounded expansion: ZIP and gzip."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib

from unfoldkit.errors import user_error

MAX_ARCHIVE_BYTES = 1 << 30
"""What an archive may expand to, unless it is large itself."""
MAX_RATIO = 20
"""How many times its own size an archive larger than ``MAX_ARCHIVE_BYTES / MAX_RATIO`` may expand to."""
_BAD_ARCHIVE = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError, NotImplementedError)


def max_expanded_bytes(size: int) -> int:
    """Return how many bytes an archive or a gzip file of ``size`` bytes may expand to."""
    return max(MAX_ARCHIVE_BYTES, MAX_RATIO * size)


def read_archive(data: bytes, file: str = "") -> zipfile.ZipFile:
    """Return a ZIP archive with members of different names that expand within the stated bound.

    Raises:
        UnfoldError: it is no archive, names a member twice, or expands beyond the bound.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = archive.infolist()
    except (*_BAD_ARCHIVE, ValueError) as error:
        raise user_error(f"not an archive: {error}", file=file) from error
    if len({member.filename for member in members}) < len(members):
        raise user_error("the archive names a member twice", file=file)
    limit = max_expanded_bytes(len(data))
    if sum(member.file_size for member in members) > limit:
        raise user_error(f"the archive expands to more than {limit / (1 << 20):,.0f} MiB", file=file)
    return archive


def read_member(archive: zipfile.ZipFile, name: str, file: str = "") -> bytes:
    """Return the bytes of one member of an archive.

    Raises:
        UnfoldError: there is no such member, or it is damaged.
    """
    try:
        return archive.read(name)
    except KeyError as error:
        raise user_error(f"the archive holds no {name!r}", file=file) from error
    except (*_BAD_ARCHIVE, ValueError) as error:
        raise user_error(f"the archive is damaged: {error}", file=file) from error


def gunzip(data: bytes, file: str = "") -> bytes:
    """Return the content of a gzip file, or the data itself where it is none.

    Raises:
        UnfoldError: the file is damaged, or expands beyond the bound of archives.
    """
    if data[:2] != b"\x1f\x8b":
        return data
    limit = max_expanded_bytes(len(data))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            content = stream.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise user_error(f"not a gzip file: {error}", file=file) from error
    if len(content) > limit:
        raise user_error(f"the file expands to more than {limit / (1 << 20):,.0f} MiB", file=file)
    return content
