"""Archives with bounded expansion: ZIP and gzip."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
import zlib

from unfoldkit.errors import require_packages, user_error

MAX_ARCHIVE_BYTES = 1 << 30
"""What an archive may expand to, unless it is large itself."""
MAX_RATIO = 20
"""How many times its own size an archive larger than ``MAX_ARCHIVE_BYTES / MAX_RATIO`` may expand to."""
ZSTANDARD = 93
"""The compression method of members in Zstandard."""
LOCAL_HEADER = "<4s5H3I2H"
"""What comes before the name and the data of a member."""
_BAD_ARCHIVE = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError, NotImplementedError)


def max_expanded_bytes(size: int) -> int:
    """Return how many bytes an archive or a gzip file of ``size`` bytes may expand to."""
    return max(MAX_ARCHIVE_BYTES, MAX_RATIO * size)


def read_archive(data: bytes, file: str = "") -> zipfile.ZipFile:
    """Return a ZIP archive with members of different names that expand within the stated bound.

    Raises:
        UnfoldError: It is no archive, names a member twice, or expands beyond the bound.
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
        UnfoldError: There is no such member, or it is damaged.
    """
    try:
        member = archive.getinfo(name)
        return _read_zstandard(archive, member, file) if member.compress_type == ZSTANDARD else archive.read(name)
    except KeyError as error:
        raise user_error(f"the archive holds no {name!r}", file=file) from error
    except (*_BAD_ARCHIVE, ValueError) as error:
        raise user_error(f"the archive is damaged: {error}", file=file) from error


def _read_zstandard(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: str) -> bytes:
    """Return the bytes of a member in Zstandard, which ``zipfile`` reads from Python 3.14 on.

    Raises:
        UnfoldError: pyarrow is not installed.
        ValueError: The member is damaged, or its size is not the stated one.
    """
    require_packages("an archive in Zstandard", "pyarrow", file=file)
    from pyarrow import ArrowException, Codec

    assert archive.fp is not None  # noqa: S101 - the archive is open
    archive.fp.seek(member.header_offset)
    *_, name_length, extra_length = struct.unpack(LOCAL_HEADER, archive.fp.read(struct.calcsize(LOCAL_HEADER)))
    archive.fp.seek(name_length + extra_length, os.SEEK_CUR)
    packed = archive.fp.read(member.compress_size)
    try:
        data = bytes(Codec("zstd").decompress(packed, member.file_size, asbytes=True))
    except (ArrowException, OSError) as error:
        raise ValueError(str(error)) from error
    if zlib.crc32(data) != member.CRC:
        raise ValueError(f"bad checksum of {member.filename!r}")
    return data


def gunzip(data: bytes, file: str = "") -> bytes:
    """Return the content of a gzip file, or the data itself where it is none.

    Raises:
        UnfoldError: The file is damaged, or expands beyond the bound of archives.
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
