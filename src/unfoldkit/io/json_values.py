"""Read JSON values that follow one another in one text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def parse_values(text: str) -> Iterator[Any]:
    """Yield the values of a document; several may follow one another, with or without white space between them.

    Raises:
        json.JSONDecodeError: The text is not JSON.
    """
    decoder, position, text = json.JSONDecoder(), 0, text.strip()
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        yield value
        while position < len(text) and text[position].isspace():
            position += 1
