"""How wide the columns of a table of text are: no number and no word is broken while there is another way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len

PAD = 3
LONGEST_WORD = 24


def parts(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], room: int
) -> Iterator[list[tuple[int, int]]]:
    """Yield the columns that stand beside each other, each with its width; the first one begins every part.

    A table that is too wide even with a line break after every word comes in several parts, one below the other.
    """
    columns = [[head, *(row[index] for row in rows)] for index, head in enumerate(heads)]
    whole = [max(map(cell_len, texts)) for texts in columns]
    least = [_least(texts, whole=flag) for texts, flag in zip(columns, numeric, strict=True)]
    for part in _fitting(least, room):
        yield list(zip(part, _shared([least[i] for i in part], [whole[i] for i in part], room), strict=True))


def _least(texts: Sequence[str], *, whole: bool) -> int:
    words = [word for text in (texts[:1] if whole else texts) for word in text.split()]
    longest = min(max(map(cell_len, words), default=1), LONGEST_WORD)
    return max([longest, *map(cell_len, texts[1:])]) if whole else longest


def _fitting(least: Sequence[int], room: int) -> Iterator[list[int]]:
    part: list[int] = []
    for index in range(len(least)):
        if len(part) > 1 and sum(least[i] + PAD for i in (*part, index)) > room:
            yield part
            part = [0]
        part.append(index)
    yield part


def _shared(least: Sequence[int], whole: Sequence[int], room: int) -> list[int]:
    """Return widths between the least and the whole ones, what is left shared by what each lacks."""
    left = room - sum(least) - PAD * len(least)
    lacks = [max(0, most - few) for few, most in zip(least, whole, strict=True)]
    if left >= sum(lacks):
        return [max(few, most) for few, most in zip(least, whole, strict=True)]
    return [few + max(0, left) * lack // sum(lacks) for few, lack in zip(least, lacks, strict=True)]
