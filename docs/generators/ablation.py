"""The part of the page on shared weights that has figures: what each ingredient of training brings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs.generators.benchmarks import number
from docs.generators.markdown import table

PAGE = "docs/explanation/shared-weights.md"
BEGIN = "<!-- made by `python -m docs.generate` from benchmarks/results/supernet-ablation.json -->\n"
END = "<!-- until here -->\n"
PLACES = ("min", "mid", "max")


def page(root: Path) -> str:
    """Return the page on shared weights with its table as the stored result has it; the rest stays as it is.

    Raises:
        ValueError: the page has no place for the table.
    """
    before, begin, rest = (root / PAGE).read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE} has no place for the table")
    return f"{before}{BEGIN}\n{part(root / 'benchmarks')}\n{END}{after}"


def part(folder: Path) -> str:
    """Return the table of the stored result in ``folder``: accuracies, and each loss with its paired error."""
    path = folder / "results" / "supernet-ablation.json"
    if not path.is_file():
        return "Not measured yet: `python -m benchmarks supernet-ablation --write`.\n"
    data: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    recipe = ["the recipe", *(f"{data['metrics'][f'accuracy_{at}']:.2f}" for at in PLACES)]
    rows = [[row["instead"], *(_cell(row, at) for at in PLACES)] for row in data["tables"]["lost"]]
    steps = ", ".join(f"{name} {number(peer['steps_mid'])}" for name, peer in data["peers"].items())
    words = f"Accuracy in %; lost points with their paired error in brackets. Steps of the middle net: {steps}.\n"
    return table(["instead", "smallest", "middle", "largest"], [recipe, *rows]) + "\n" + words


def _cell(row: Mapping[str, Any], at: str) -> str:
    return f"{row[at]:.2f} (lost {row[f'{at}_lost']:+.2f} ± {row[f'{at}_error']:.2f})"
