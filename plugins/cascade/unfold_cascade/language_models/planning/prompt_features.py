"""What a plan reads of a prompt: its length and, on request, a static embedding for the gate before the first model.

Its scripts too: a promise covers those of its log, and no other one. A script is the first word of the Unicode name of
a letter, such as LATIN, CYRILLIC, CJK or HANGUL. Languages that share a script count as one: to separate them takes a
model, which would need a promise of its own.

The embedding is the mean of one stored vector per token, so it needs no model call: weights and tokenizer of 16 MB come
with the package ``wordllama`` (extra ``embeddings``), and nothing is downloaded. Its training is nested (Kusupati et
al. 2022, Matryoshka Representation Learning), so the first dimensions are an embedding too.
"""

from __future__ import annotations

import hashlib
import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unfold_cascade._types import FloatArray
from unfoldkit.api import user_error

LENGTH = ("log characters", "log words", "log lines", "share of digits", "share of punctuation")
DIMENSIONS = 64
LONGEST_TEXT = 16_000
"""Characters of a prompt that are embedded: a few milliseconds, however long the prompt is."""
MIN_SHARE = 0.1
"""A text is written in the scripts that make up at least this share of its letters: a name or a formula is none."""
MAX_CHARACTERS = 20_000
"""Characters of a text that are searched for scripts."""
BATCH = 16
"""Texts that are embedded at once: a batch has as many vectors as its longest text has tokens, for each text."""
WEIGHTS = "weights/l2_supercat_256.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptReader:
    """Reads features of prompts.

    Attributes:
        embedding: Names the weights of the embedding, with the start of their SHA-256; empty for the length alone.
        embed: Computes (n, DIMENSIONS) embeddings of texts; ``None`` for the length alone.
    """

    embedding: str = ""
    embed: Callable[[list[str]], FloatArray] | None = None

    @property
    def size(self) -> int:
        """Number of features."""
        return len(LENGTH) + (0 if self.embed is None else DIMENSIONS)

    def read(self, texts: Sequence[str]) -> FloatArray:
        """Compute the (n, size) features of prompts."""
        lengths = np.array([measure_length(text) for text in texts], dtype=np.float64).reshape(-1, len(LENGTH))
        if self.embed is None:
            return lengths
        return np.column_stack([lengths, self.embed([clean_text(text) for text in texts])])


def measure_length(text: str) -> tuple[float, ...]:
    """Measure the length of a prompt, and what it is made of: the values of ``LENGTH``."""
    count = max(len(text), 1)
    digits = sum(map(str.isdigit, text))
    marks = sum(not (letter.isalnum() or letter.isspace()) for letter in text)
    return (
        math.log1p(len(text)),
        math.log1p(len(text.split())),
        math.log1p(text.count("\n")),
        digits / count,
        marks / count,
    )


def clean_text(text: str) -> str:
    """Return the start of a text that a tokenizer accepts: a lone surrogate is no character of UTF-8."""
    return text[:LONGEST_TEXT].encode("utf-8", "replace").decode("utf-8")


def build_prompt_reader(features: Sequence[str]) -> PromptReader:
    """Build the reader of ``entry.features``: ``length``, with or without ``embedding``.

    Raises:
        ModuleNotFoundError: The package of the embedding is not installed.
        UnfoldError: It lacks the weights that are read here.
    """
    return load_embedding() if "embedding" in features else PromptReader()


def load_embedding() -> PromptReader:
    """Load the embedding from the installed package, without the network.

    Raises:
        ModuleNotFoundError: The package is not installed.
        UnfoldError: It lacks the weights that are read here.
    """
    handlers, level = list(logging.root.handlers), logging.root.level
    try:
        import wordllama
    finally:
        # the package configures the root logger as it is imported
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
    folder = Path(str(wordllama.__file__)).parent
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise user_error(f"the installed wordllama has no {WEIGHTS}", hint="pip install 'wordllama>=0.4.0.post1'")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True, trunc_dim=DIMENSIONS)
    return PromptReader(
        embedding=f"{weights.stem}:{DIMENSIONS}:{digest}",
        embed=lambda texts: np.asarray(model.embed(texts, batch_size=BATCH), dtype=np.float64),
    )


def list_scripts(text: str) -> frozenset[str]:
    """List the scripts of a text; empty for one without letters.

    Args:
        text: Any text; only its first characters are read.
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
        texts: The prompts.
    """
    scripts: set[str] = set()
    for text in texts:
        scripts |= list_scripts(text)
    return tuple(sorted(scripts))


def _find_script(letter: str) -> str:
    """Return the first word of a letter's name: ``CJK UNIFIED IDEOGRAPH-65E5`` is CJK."""
    words = unicodedata.name(letter, "").replace("FULLWIDTH ", "").replace("HALFWIDTH ", "")
    return words.partition(" ")[0].partition("-")[0]
