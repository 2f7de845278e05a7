"""The kind passes the conformance kit."""

from __future__ import annotations

from pathlib import Path

import pytest

from unfold_pipeline import hooks
from unfoldkit.api import Kind
from unfoldkit.testing import Law, laws


@pytest.mark.parametrize("law", laws(), ids=lambda law: law.__name__)
@pytest.mark.parametrize("kind", list(hooks.unfold_kinds()), ids=lambda kind: kind.name)
def test_kind_conforms(kind: Kind, law: Law, tmp_path: Path) -> None:
    """The kind passes every check of the conformance kit."""
    law(kind, tmp_path)
