"""The kind does what every kind must do."""

from __future__ import annotations

from pathlib import Path

import pytest

from unfold_placement import hooks
from unfoldkit.api import Kind
from unfoldkit.testing import Law, find_violation, laws


@pytest.mark.parametrize("law", laws(), ids=lambda law: law.__name__)
@pytest.mark.parametrize("kind", list(hooks.unfold_kinds()), ids=lambda kind: kind.name)
def test_kind_keeps_the_law(kind: Kind, law: Law, tmp_path: Path) -> None:
    """Every law of the conformance kit holds."""
    assert find_violation(law, kind, tmp_path) is None
