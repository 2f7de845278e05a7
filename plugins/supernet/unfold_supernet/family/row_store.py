"""Inputs of any number of rows in bounded memory: a temporary file that is mapped, and read where a batch needs it.

The file has no name while it is open, so that a run that is killed leaves nothing behind. Random batches stay exact:
unlike a shuffle buffer, the mapped file gives each row in any order.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from unfold_supernet._types import Float32Array
from unfoldkit.api import internal_error, user_error
from unfoldkit.safe_io.files import open_regular

HASH_BYTES = 1 << 20


@dataclass(slots=True)
class RowStore:
    """Rows of one shape that are appended block by block.

    Attributes:
        stream: The temporary file.
        size: Shape of a row; ``None`` before the first block.
        rows: Number of rows.
        first_file: Where the first block comes from.
    """

    stream: IO[bytes]
    size: tuple[int, ...] | None = None
    rows: int = 0
    first_file: str = ""

    def append(self, block: Float32Array, file: str) -> None:
        """Append rows (n, *size) that come from ``file``.

        Raises:
            UnfoldError: The rows hold no value or have another shape than those before (exit code 2), or the disk is
                full (3).
        """
        if self.size is None:
            self.size, self.first_file = block.shape[1:], Path(file).name
        if block.shape[1:] != self.size:
            message = f"a row has shape {block.shape[1:]}, but {self.size} in {self.first_file}"
            raise user_error(message, file=file, key="data.path", hint="all rows need one shape")
        try:
            self.stream.write(np.ascontiguousarray(block, np.float32).data)
            self.stream.flush()
        except OSError as error:
            message = f"cannot store the decoded inputs after {self.rows:,} rows: {error.strerror}"
            raise internal_error(message, hint="--run DIR on another disk") from error
        self.rows += len(block)

    def map_rows(self) -> Float32Array:
        """Map all rows (n, *size); the pages that a batch touches are read from the file."""
        if self.size is None or not self.rows:
            return np.zeros((0, *(self.size or ())), np.float32)
        # copy on write: torch warns of arrays that it must not write to, and nothing is written
        mapped = np.memmap(self.stream, np.float32, "c", shape=(self.rows, *self.size))
        return np.asarray(mapped)


@contextlib.contextmanager
def open_store(folder: Path | None) -> Iterator[RowStore]:
    """Open an empty store in a folder; ``None`` takes the system's folder for temporary files.

    What :meth:`RowStore.map_rows` returned stays valid afterwards: the mapping keeps the file.
    """
    with tempfile.TemporaryFile(dir=folder) as stream:
        yield RowStore(stream)


def hash_files(files: Iterable[Path]) -> str:
    """Compute the SHA-256 over the names and contents of files, a block at a time."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(os.fsencode(path.name) + b"\0")
        with open_regular(path) as stream:
            while block := stream.read(HASH_BYTES):
                digest.update(block)
    return digest.hexdigest()
