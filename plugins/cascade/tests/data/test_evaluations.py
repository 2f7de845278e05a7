"""Samples of evaluation harnesses become a table with a row per request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unfold_cascade.data.evaluation_samples import read_evaluations
from unfold_cascade.data.table import frame_of_file
from unfoldkit.api import UnfoldError

DATE = "2026-01-31T10-00-00.000000"


def write_harness(folder: Path, model: str, samples: list[dict[str, Any]], task: str = "arc_easy") -> Path:
    """Write a file of samples as ``lm_eval --log_samples`` does."""
    file = folder / model / f"samples_{task}_{DATE}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return file


def make_choice(doc: int, likelihoods: tuple[float, ...], target: int, **other: Any) -> dict[str, Any]:
    """Make a sample of a multiple-choice task; the harness writes numbers of responses as text."""
    responses = [[str(value), "False"] for value in likelihoods]
    arguments = {f"gen_args_{i}": {"arg_0": f"Question {doc}?", "arg_1": f" {i}"} for i in range(len(likelihoods))}
    is_right = float(np.argmax(likelihoods) == target)
    sample = {"doc_id": doc, "doc": {}, "target": str(target), "arguments": arguments, "filtered_resps": responses}
    return {**sample, "filter": "none", "metrics": ["acc"], "doc_hash": f"hash {doc}", "acc": is_right, **other}


def make_text(doc: int, name: str, score: float) -> dict[str, Any]:
    """Make a sample of a generated answer, under one of two filters."""
    arguments = {"gen_args_0": {"arg_0": f"Sum {doc}?", "arg_1": {"until": ["Q:"]}}}
    sample = {"doc_id": doc, "target": "3", "arguments": arguments, "resps": [["It is 3"]], "filtered_resps": ["3"]}
    return {**sample, "filter": name, "metrics": ["exact_match"], "exact_match": score}


def test_samples_of_all_models_are_joined_by_request(tmp_path: Path) -> None:
    """The order of samples does not matter; the confidence is the probability of the most likely choice."""
    small = [make_choice(doc, (-1.0, -2.0), target=doc % 2) for doc in range(12)]
    large = [make_choice(doc, (-3.0, -3.0 if doc else -9.0), target=0) for doc in reversed(range(12))]
    write_harness(tmp_path, "org__small", small)
    write_harness(tmp_path, "org__large", large)
    frame = frame_of_file(tmp_path)
    assert len(frame) == 12
    order = np.argsort([int(text.removeprefix("Question ")[:-1]) for text in frame.text("prompt", key="")])
    assert frame.numbers("org__small|acc", key="")[order].tolist() == [1.0, 0.0] * 6
    assert frame.numbers("org__small|confidence", key="") == pytest.approx(np.full(12, 1 / (1 + np.exp(-1.0))))
    assert frame.numbers("org__large|confidence", key="")[order][:2] == pytest.approx([1 / (1 + np.exp(-6.0)), 0.5])
    assert set(frame.text("task", key="")) == {"arc_easy"}


def test_each_filter_of_generated_answers_has_columns_of_its_own(tmp_path: Path) -> None:
    """A generated answer has no confidence, and each filter its own score."""
    samples = [make_text(doc, name, name == "flexible") for name in ("strict", "flexible") for doc in range(3)]
    write_harness(tmp_path, "small", samples, task="gsm8k")
    columns, _ = read_evaluations(tmp_path)
    assert columns["small|exact_match|strict"].tolist() == [0.0] * 3
    assert columns["small|exact_match|flexible"].tolist() == [1.0] * 3
    assert columns["small|answer|strict"].tolist() == ["3"] * 3
    assert not any("confidence" in name for name in columns)


def write_helm(
    folder: Path, model: str, correct: list[float], *, prompts: bool = True, subject: str = "anatomy"
) -> None:
    """Write a run as ``helm-run`` does: with perturbed instances, and a metric that was never counted."""
    run = folder / f"mmlu:subject={subject},model={model},data_augmentation=canonical"
    run.mkdir(parents=True)

    def stat(name: str, value: float, count: int = 1) -> dict[str, Any]:
        return {"name": {"name": name, "split": "test"}, "count": count, "sum": value, "mean": value}

    items = []
    for number, score in enumerate(correct):
        stats = [stat("exact_match", score), stat("inference_runtime", 0.5), stat("never", 0.0, count=0)]
        item = {"instance_id": f"id{number}", "train_trial_index": 0, "stats": stats}
        items += [item, {**item, "perturbation": {"name": "robustness"}}]
    (run / "per_instance_stats.json").write_text(json.dumps(items))
    states = [{"instance": {"id": f"id{n}", "input": {"text": f"What is {n}?"}}} for n in range(len(correct))]
    if prompts:
        (run / "scenario_state.json").write_text(json.dumps({"request_states": states}))


def test_runs_of_helm_are_joined_by_instance(tmp_path: Path) -> None:
    """Perturbed instances are left out, and the name of the runtime says that it is in seconds."""
    write_helm(tmp_path, "openai_small", [1.0, 0.0, 1.0])
    write_helm(tmp_path, "openai_large", [1.0, 1.0, 1.0])
    columns, _ = read_evaluations(tmp_path)
    assert columns["openai_small|exact_match"].tolist() == [1.0, 0.0, 1.0]
    assert columns["openai_large|inference_runtime_s"].tolist() == [0.5] * 3
    assert columns["prompt"].tolist() == ["What is 0?", "What is 1?", "What is 2?"]
    assert set(columns["task"]) == {"mmlu:subject=anatomy,data_augmentation=canonical"}
    assert "openai_small|never" not in columns


def test_instances_without_prompts_are_distinct(tmp_path: Path) -> None:
    """Each run numbers its instances from zero: equal numbers of two tasks are not one prompt."""
    for subject in ("anatomy", "law"):
        write_helm(tmp_path, "small", [1.0, 0.0], prompts=False, subject=subject)
    columns, _ = read_evaluations(tmp_path)
    assert len(set(columns["prompt"])) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"doc_id": 99}, "has no sample of request"),
        ({"doc_hash": "another"}, "is not that of the other models"),
        ({"doc_id": 1}, "document 1 occurs twice"),
        ({"acc": 10**400}, "not a file of samples"),
        ({"filtered_resps": 3}, "not a file of samples"),
        ({"filtered_resps": [["x", "y"], ["z", "w"]]}, "not a file of samples"),
    ],
)
def test_samples_that_do_not_match_are_rejected(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """A request which one model did not answer would count as a wrong answer; an error names it instead."""
    samples = [make_choice(doc, (-1.0, -2.0), target=0) for doc in range(12)]
    write_harness(tmp_path, "small", samples)
    write_harness(tmp_path, "large", [{**samples[0], **change}, *samples[1:]])
    with pytest.raises(UnfoldError, match=message):
        read_evaluations(tmp_path)


def test_two_evaluations_of_a_model_are_rejected(tmp_path: Path) -> None:
    """Which of two evaluations counts is a question for the user."""
    samples = [make_choice(doc, (-1.0, -2.0), target=0) for doc in range(12)]
    file = write_harness(tmp_path, "small", samples)
    file.with_name("samples_arc_easy_2026-02-01T10-00-00.jsonl").write_bytes(file.read_bytes())
    with pytest.raises(UnfoldError, match="a second sample of small"):
        read_evaluations(tmp_path)


def test_one_file_of_samples_is_no_table(tmp_path: Path) -> None:
    """The file of one model names the folder that is needed; so does a folder without samples."""
    file = write_harness(tmp_path, "small", [make_choice(doc, (-1.0, -2.0), target=0) for doc in range(12)])
    with pytest.raises(UnfoldError, match="samples of one model"):
        frame_of_file(file)
    with pytest.raises(UnfoldError, match="folder without samples"):
        read_evaluations(tmp_path / "nothing")
