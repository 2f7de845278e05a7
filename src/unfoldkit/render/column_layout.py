"""Lay out the columns of a text table so that numbers and words are not broken if possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len

PAD = 3
LONGEST_WORD = 24


def layout_columns(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], room: int
) -> Iterator[list[tuple[int, int]]]:
    """Yield the parts of a table, as column indices with their widths.

    A table that is too wide even with a line break after every word is split into parts, one below the other. Each part
    begins with the first column.
    """
    columns = [[head, *(row[index] for row in rows)] for index, head in enumerate(heads)]
    full_widths = [max(map(cell_len, texts)) for texts in columns]
    min_widths = [_min_width(texts, is_numeric=flag) for texts, flag in zip(columns, numeric, strict=True)]
    for part in _split_parts(min_widths, room):
        widths = _share_room([min_widths[i] for i in part], [full_widths[i] for i in part], room)
        yield list(zip(part, widths, strict=True))


def _min_width(texts: Sequence[str], *, is_numeric: bool) -> int:
    words = [word for text in (texts[:1] if is_numeric else texts) for word in text.split()]
    longest = min(max(map(cell_len, words), default=1), LONGEST_WORD)
    return max([longest, *map(cell_len, texts[1:])]) if is_numeric else longest


def _split_parts(min_widths: Sequence[int], room: int) -> Iterator[list[int]]:
    part: list[int] = []
    for index in range(len(min_widths)):
        if len(part) > 1 and sum(min_widths[i] + PAD for i in (*part, index)) > room:
            yield part
            part = [0]
        part.append(index)
    yield part


def _share_room(min_widths: Sequence[int], full_widths: Sequence[int], room: int) -> list[int]:
    """Return widths between the minimum and the full ones; spare room is shared in proportion to what is missing."""
    spare = room - sum(min_widths) - PAD * len(min_widths)
    missing = [max(0, full - minimum) for minimum, full in zip(min_widths, full_widths, strict=True)]
    if spare >= sum(missing):
        return [max(minimum, full) for minimum, full in zip(min_widths, full_widths, strict=True)]
    total = sum(missing)
    return [minimum + max(0, spare) * lack // total for minimum, lack in zip(min_widths, missing, strict=True)]
