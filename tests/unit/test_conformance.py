"""The conformance kit reports what a kind breaks, however Python was started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from unfoldkit.plugin_descriptors import Kind
from unfoldkit.testing import laws

CALL = """
from pathlib import Path
from unfoldkit.plugin_descriptors import Kind
from unfoldkit.testing.conformance import examples_are_valid
examples_are_valid(Kind("bare", "no example", "unfoldkit.spec.base:Spec"), Path())
"""


@pytest.mark.parametrize("flag", ["-B", "-O"])
def test_a_broken_law_is_reported_by_optimized_python_too(flag: str) -> None:
    """A kind that breaks a law fails under ``python -O`` as without it."""
    done = subprocess.run([sys.executable, flag, "-c", CALL], capture_output=True, text=True, check=False, timeout=60)
    assert "AssertionError: bare ships no example" in done.stderr


def test_a_kind_that_breaks_a_law_is_reported_by_name(tmp_path: Path) -> None:
    """A kind without verbs and one that ships no example are each reported by name."""
    bare = Kind("bare", "nothing", "unfoldkit.spec.base:Spec")
    by_name = {law.__name__: law for law in laws()}
    for name, words in (("references_resolve", "bare has no verb"), ("examples_are_valid", "bare ships no example")):
        with pytest.raises(AssertionError, match=words):
            by_name[name](bare, tmp_path)
