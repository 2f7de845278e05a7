"""The verb ``serve`` without torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from plugins.supernet.tests.helpers import make_run
from unfold_supernet.schema.supernet import SupernetSpec
from unfold_supernet.verbs.serve import serve
from unfoldkit.api import UnfoldError
from unfoldkit.errors import install_command


def test_serving_without_torch_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch, serving ends with 2 and names the extra."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    given = {"version": 1, "kind": "supernet", "name": "t", "family": "ofa-resnet50"}
    with pytest.raises(UnfoldError) as caught:
        serve(SupernetSpec.model_validate(given), make_run(tmp_path))
    assert caught.value.code == 2
    assert install_command("torch") in str(caught.value)
