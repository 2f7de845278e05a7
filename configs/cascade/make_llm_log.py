"""Makes llm-log.csv: invented calls of three language models on 2,400 invented questions.

No model was called. A question has a difficulty; a model answers it if its skill suffices, up to luck that the models
mostly share. Log-probabilities are those of a model which knows its chances only roughly.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

ROWS = 2400
MODELS = {"small": (1.0, 0.55, 180), "medium": (2.3, 0.7, 320), "large": (3.0, 0.8, 700)}
"""Skill, how well the confidence follows the chance of being correct, and mean latency in ms."""


def main() -> None:
    """Write llm-log.csv beside this file."""
    rng = np.random.default_rng(21)
    difficulty, luck = rng.normal(0, 1.4, ROWS), rng.random(ROWS)
    tokens_in = np.maximum(20, rng.lognormal(5.2, 0.5, ROWS)).astype(int)
    columns: dict[str, list[object]] = {"question": [f"question {k}" for k in range(ROWS)]}
    for name, (skill, insight, latency) in MODELS.items():
        chance = 1 / (1 + np.exp(-(skill - difficulty)))
        mine = np.where(rng.random(ROWS) < 0.85, luck, rng.random(ROWS))
        blurred = insight * np.log(chance / (1 - chance)) + (1 - insight) * rng.normal(1, 1.5, ROWS)
        columns[f"{name}|correct"] = (mine < chance).astype(int).tolist()
        columns[f"{name}|logprob"] = np.round(-np.log1p(np.exp(-1.5 * blurred)), 5).tolist()
        columns[f"{name}|tokens_in"] = tokens_in.tolist()
        columns[f"{name}|tokens_out"] = np.maximum(1, rng.lognormal(3.5, 0.6, ROWS)).astype(int).tolist()
        columns[f"{name}|latency_ms"] = np.round(rng.lognormal(np.log(latency), 0.4, ROWS)).astype(int).tolist()
    with (Path(__file__).parent / "llm-log.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


if __name__ == "__main__":
    main()
