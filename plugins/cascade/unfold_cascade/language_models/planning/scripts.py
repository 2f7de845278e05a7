"""The scripts that prompts are written in: a promise covers those of its log, and no other one.

A script is the first word of the Unicode name of a letter, such as LATIN, CYRILLIC, CJK or HANGUL. Languages that
share a script count as one: to separate them takes a model, which would need a promise of its own.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

MIN_SHARE = 0.1
"""A text is written in the scripts that make up at least this share of its letters: a name or a formula is none."""
MAX_CHARACTERS = 20_000
"""Characters of a text that are read."""


def list_scripts(text: str) -> frozenset[str]:
    """List the scripts of a text; empty for one without letters.

    Args:
        text: any text; only its first characters are read.
    """
    if text.isascii():
        return frozenset({"LATIN"}) if any(map(str.isalpha, text[:MAX_CHARACTERS])) else frozenset()
    counts: Counter[str] = Counter()
    for letter, count in Counter(text[:MAX_CHARACTERS]).items():
        if letter.isalpha():
            counts[_find_script(letter)] += count
    least = MIN_SHARE * counts.total()
    return frozenset(script for script, count in counts.items() if count >= least)


def join_scripts(texts: Iterable[str]) -> tuple[str, ...]:
    """List the scripts of all prompts of a log, in order of their names.

    Args:
        texts: the prompts.
    """
    scripts: set[str] = set()
    for text in texts:
        scripts |= list_scripts(text)
    return tuple(sorted(scripts))


def _find_script(letter: str) -> str:
    """Return the first word of a letter's name: ``CJK UNIFIED IDEOGRAPH-65E5`` is CJK."""
    words = unicodedata.name(letter, "").replace("FULLWIDTH ", "").replace("HALFWIDTH ", "")
    return words.partition(" ")[0].partition("-")[0]
