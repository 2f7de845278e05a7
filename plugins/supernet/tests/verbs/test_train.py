"""The verb ``train`` without torch."""

from __future__ import annotations

import re
from importlib import util
from pathlib import Path

import pytest

from plugins.supernet.tests.helpers import make_run, parse_spec
from unfold_supernet.verbs.train import train
from unfoldkit.api import UnfoldError
from unfoldkit.errors import install_command


def test_training_without_torch_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch, training is refused before anything is imported, and the hint names the extra."""
    monkeypatch.setattr(util, "find_spec", lambda _name: None)
    text = "version: 1\nkind: supernet\nname: t\ndata: {source: digits}\nspace: {stages: [{width: 8}]}\n"
    with pytest.raises(UnfoldError, match=re.escape(install_command("torch"))):
        train(parse_spec(text), make_run(tmp_path))
