"""Labels that are coded in two ways are noticed: by the failure of the baseline, or by their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import recorded_spec, run_in, spec_of
from unfold_cascade.verbs import plan


@pytest.mark.parametrize("is_recoded", [True, False])
def test_a_site_with_another_coding_of_the_label_is_noticed(is_recoded: bool, tmp_path: Path) -> None:
    """Cascade and baseline are wrong together where a site codes the label the other way; the report says so."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(1200):
        site, label = rng.choice(["A", "B"]), int(rng.integers(0, 2))
        ease = rng.random()
        small, large = (label if ease > chance else 1 - label for chance in (0.2, 0.03))
        written = 1 - label if is_recoded and site == "B" else label
        rows.append(f"{written},{small},{ease:.4f},{large},{ease:.4f},{site}\n")
    (tmp_path / "log.csv").write_text("y,a,qa,b,qb,site\n" + "".join(rows))
    (tmp_path / "log.yaml").write_text(recorded_spec("sites", "5%", data=", split: {column: site, test: [B]}"))
    report = plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))
    line = dict(report.lines).get("baseline", "")
    assert ("are labels coded the same way" in line) == is_recoded


def test_labels_that_differ_only_in_case_are_noticed(tmp_path: Path) -> None:
    """Two sites that write one answer in two ways make two labels of it; the report names them."""
    rng = np.random.default_rng(1)
    words, rows = ["No", "Yes", "no"], []
    for _ in range(900):
        label, ease = int(rng.integers(0, 3)), rng.random()
        small = label if ease > 0.1 else (label + 1) % 3
        rows.append(f"{words[label]},{words[small]},{ease:.4f},{words[label]},{ease:.4f}\n")
    (tmp_path / "log.csv").write_text("y,a,qa,b,qb\n" + "".join(rows))
    (tmp_path / "log.yaml").write_text(recorded_spec("words", "5%"))
    report = plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))
    assert dict(report.lines)["labels"] == '"No" and "no" differ only in case or encoding and count as different labels'
