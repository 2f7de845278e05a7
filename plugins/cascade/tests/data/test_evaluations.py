"""Samples of evaluation harnesses become a table with a row per request."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unfold_cascade.data.evaluations.reader import read_evaluations
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
        ({"acc": 10**400}, "an integer has 401 digits"),
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


def test_unusual_separators_within_texts_do_not_end_a_line(tmp_path: Path) -> None:
    """The harness writes texts unescaped, and U+2028 may be one of their characters."""
    samples = [make_text(doc, "none", 1.0) | {"filtered_resps": ["a\u2028b"]} for doc in range(3)]
    file = write_harness(tmp_path, "small", [])
    file.write_text("".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples))
    assert read_evaluations(tmp_path)[0]["small|answer"].tolist() == ["a\u2028b"] * 3


def make_inspect_log(model: str, grades: str, **changes: Any) -> dict[str, Any]:
    """Make a log of Inspect with a sample of one call for each grade."""
    samples = []
    for number, grade in enumerate(grades):
        usage = {"input_tokens": 20, "output_tokens": 5, "input_tokens_cache_read": 7, "input_tokens_cache_write": 3}
        logprobs = {"content": [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -0.3}]}
        message = {"id": f"{model}-{number}", "role": "assistant", "content": f"ANSWER: {number}"}
        output = {"choices": [{"message": message, "logprobs": logprobs}], "completion": message["content"]}
        samples.append(
            {
                "id": number,
                "epoch": 1,
                "input": [{"id": f"{model}{number}", "role": "user", "content": f"attachment://{number}"}],
                "choices": ["one", "two"],
                "target": "A",
                "messages": [{"role": "user", "content": "?"}, message],
                "output": {**output, "usage": usage, "time": 1.5},
                "scores": {"match": {"value": grade}, "judge": {"value": {"style": 7, "tone": "C"}}},
                "model_usage": {model: {"input_tokens": 900, "output_tokens": 50}},
                "working_time": 9.0,
                "attachments": {str(number): f"Question {number}?"},
                **changes,
            }
        )
    return {"version": 2, "status": "success", "eval": {"model": model, "task": "sums"}, "samples": samples}


def write_inspect_archive(file: Path, log: dict[str, Any]) -> None:
    """Write a log as the archive that Inspect writes by default."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps({name: log[name] for name in ("version", "status", "eval")}))
        for sample in log["samples"]:
            archive.writestr(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", json.dumps(sample))


def test_logs_of_inspect_are_joined_by_sample(tmp_path: Path) -> None:
    """Both forms of a log hold grades, log-probabilities and the tokens of the one call, without those of a judge."""
    write_inspect_archive(tmp_path / "a.eval", make_inspect_log("org/small", "CIPN" * 3))
    (tmp_path / "b.json").write_text(json.dumps(make_inspect_log("org/large", "CCCC" * 3), indent=2))
    (tmp_path / "listing.json").write_text("{}")
    frame = frame_of_file(tmp_path)
    assert frame.numbers("org/small|match", key="").tolist() == [1.0, 0.0, 0.0, 0.0] * 3
    assert frame.numbers("org/large|match", key="").tolist() == [1.0] * 12
    assert frame.numbers("org/large|judge.style", key="").tolist() == [7.0] * 12
    assert frame.numbers("org/small|logprob", key="") == pytest.approx(np.full(12, -0.2))
    tokens = [frame.numbers(f"org/small|{name}_tokens", key="")[0] for name in ("input", "cached", "written", "output")]
    assert tokens == [30.0, 7.0, 3.0, 5.0]
    assert frame.numbers("org/small|time_s", key="").tolist() == [1.5] * 12
    assert frame.text("prompt", key="")[1] == "Question 1?\none\ntwo"
    assert frame.text("org/small|answer", key="")[2] == "ANSWER: 2"


def test_an_agent_of_several_calls_counts_the_tokens_of_all(tmp_path: Path) -> None:
    """The usage of the output is that of the last call only."""
    calls = [{"role": "assistant", "content": "first"}, {"role": "assistant", "content": "second"}]
    (tmp_path / "a.json").write_text(json.dumps(make_inspect_log("small", "C" * 10, messages=calls)))
    columns, _ = read_evaluations(tmp_path)
    assert (columns["small|input_tokens"][0], columns["small|time_s"][0]) == (900.0, 9.0)


def test_a_sample_of_inspect_with_an_error_has_no_result(tmp_path: Path) -> None:
    """A call that failed gave no wrong answer: it has no score, as the reader of logs expects."""
    log = make_inspect_log("small", "C" * 10)
    log["samples"][3] |= {"error": {"message": "timeout"}, "scores": {}}
    write_inspect_archive(tmp_path / "a.eval", log)
    columns, _ = read_evaluations(tmp_path)
    assert np.flatnonzero(np.isnan(columns["small|match"])).tolist() == [3]
    assert columns["small|answer"][3] is None


def test_epochs_of_inspect_are_requests(tmp_path: Path) -> None:
    """Repetitions of a sample share their prompt, by which the reader of logs groups them."""
    first, second = make_inspect_log("small", "C" * 10), make_inspect_log("small", "I" * 10, epoch=2)
    write_inspect_archive(tmp_path / "a.eval", {**first, "samples": first["samples"] + second["samples"]})
    columns, _ = read_evaluations(tmp_path / "a.eval")
    assert columns["small|match"].tolist() == [1.0] * 10 + [0.0] * 10
    assert len(set(columns["prompt"])) == 10


@pytest.mark.parametrize("status", ["error", "cancelled", "started"])
def test_evaluations_that_did_not_end_are_rejected(tmp_path: Path, status: str) -> None:
    """The samples of an interrupted evaluation are not a random part of its task."""
    (tmp_path / "a.json").write_text(json.dumps(make_inspect_log("small", "C" * 10) | {"status": status}))
    with pytest.raises(UnfoldError, match=f"ended with status '{status}'"):
        read_evaluations(tmp_path)


def make_promptfoo_row(test: int, index: int, label: str, passed: bool, **changes: Any) -> dict[str, Any]:
    """Make a result of promptfoo, with a score that does not follow the verdict."""
    return {
        "testIdx": test,
        "promptIdx": index,
        "provider": {"id": "file://provider.js", "label": label},
        "prompt": {"raw": f"What is {test}?", "label": "What is {{n}}?"},
        "vars": {"n": test},
        "testCase": {"vars": {"n": test}},
        "success": passed,
        "score": 0.8,
        "failureReason": 0 if passed else 1,
        "gradingResult": {"pass": passed, "componentResults": [{"pass": passed}]},
        "namedScores": {"style": 0.5},
        "response": {"output": f"{test}", "cost": 0.01, "tokenUsage": {"total": 25, "prompt": 20, "completion": 5}},
        "cost": 0.01,
        "latencyMs": 12,
        **changes,
    }


def make_promptfoo_rows(**changes: Any) -> list[dict[str, Any]]:
    """Make the results of two providers on twelve tests; the changes are those of the small one's first test."""
    rows = [make_promptfoo_row(n, m, name, n % 3 > 0) for n in range(12) for m, name in enumerate(("small", "large"))]
    return [rows[0] | changes, *rows[1:]]


@pytest.mark.parametrize("form", ["document", "pretty", "lines"])
def test_results_of_promptfoo_are_joined_by_test(tmp_path: Path, form: str) -> None:
    """The verdict is not the score, and a provider is known by its label."""
    rows, file = make_promptfoo_rows(), tmp_path / ("out.jsonl" if form == "lines" else "out.json")
    document = {"evalId": "eval-1", "results": {"version": 3, "prompts": [], "results": rows}}
    text = json.dumps(document, indent=2 if form == "pretty" else None)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) if form == "lines" else text)
    frame = frame_of_file(file)
    assert len(frame) == 12
    assert frame.numbers("small|pass", key="").tolist() == [0.0, 1.0, 1.0] * 4
    assert frame.numbers("large|cost", key="").tolist() == [0.01] * 12
    assert frame.numbers("small|latency_ms", key="").tolist() == [12.0] * 12
    assert frame.text("prompt", key="")[1] == "What is 1?"


@pytest.mark.parametrize("name", ["results.yaml", "Results.YML"])
def test_yaml_is_no_table(tmp_path: Path, name: str) -> None:
    """Promptfoo writes YAML too; read as CSV, it would be one column named by its first line."""
    (tmp_path / name).write_text("evalId: eval-1\nresults:\n  version: 3\n  results: []\n" + "x: 1\n" * 20)
    with pytest.raises(UnfoldError, match=f"{name} is YAML, not a table"):
        frame_of_file(tmp_path / name)


CACHED = {"response": {"output": "0", "cached": True, "cost": 0, "tokenUsage": {"total": 25, "cached": 25}}}
UNPRICED = {"response": {"output": "0"}, "cost": 0}


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"failureReason": 2, "response": {"error": "429"}, "score": 0}, {"pass", "cost", "latency_ms", "answer"}),
        ({"gradingResult": {"pass": True, "componentResults": []}}, {"pass", "score"}),
        (CACHED, {"cost", "latency_ms", "prompt_tokens"}),
        (UNPRICED, {"cost", "prompt_tokens"}),
    ],
    ids=["failed call", "no assertion", "cached", "no price"],
)
def test_what_promptfoo_does_not_know_is_missing(tmp_path: Path, changes: dict[str, Any], missing: set[str]) -> None:
    """It writes 0 for the cost of failed, cached and unpriced calls, and passes tests without assertions."""
    file = tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in make_promptfoo_rows(**changes)))
    columns, _ = read_evaluations(file)
    names = ("pass", "score", "cost", "latency_ms", "prompt_tokens", "answer")
    empty = {name for name in names if columns[f"small|{name}"][0] in (None, "") or is_nan(columns[f"small|{name}"][0])}
    assert missing <= empty
    assert not empty - missing - {"score", "prompt_tokens"}


def is_nan(value: Any) -> bool:
    """Whether a cell holds the number that stands for a missing one."""
    return isinstance(value, float) and np.isnan(value)


def test_providers_and_prompts_of_promptfoo_stay_apart(tmp_path: Path) -> None:
    """Each prompt of a provider is a model; two providers of one name and prompt cannot be distinguished."""
    file, rows = tmp_path / "out.jsonl", make_promptfoo_rows()
    other = [row | {"promptIdx": row["promptIdx"] + 2, "prompt": {"raw": "?", "label": "terse"}} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows + other))
    columns, _ = read_evaluations(file)
    assert {name for name in columns if name.endswith("|pass")} == {
        f"{name} prompt {number}|pass" for name in ("small", "large") for number in (1, 2)
    }
    file.write_text("".join(json.dumps(row | {"provider": {"id": "x", "label": ""}}) + "\n" for row in rows))
    with pytest.raises(UnfoldError, match="two providers are called 'x'"):
        read_evaluations(file)


def make_openai_log(model: str, verdicts: list[bool]) -> list[dict[str, Any]]:
    """Make the events of OpenAI evals, whose final report may stand anywhere."""
    lines: list[dict[str, Any]] = [{"spec": {"completion_fns": [model], "base_eval": "sums", "eval_name": "sums.dev"}}]
    for number, correct in enumerate(verdicts):
        prompt = [{"role": "user", "content": f"Sum {number}?"}]
        events = {"sampling": {"prompt": prompt, "sampled": ["4"]}, "match": {"correct": correct, "expected": "4"}}
        lines += [{"sample_id": f"sums.{number}", "type": kind, "data": data} for kind, data in events.items()]
    return [*lines, {"final_report": {"accuracy": 0.5}}]


def test_logs_of_openai_evals_are_joined_by_sample(tmp_path: Path) -> None:
    """A judge's events of sampling come later, and do not replace the answer."""
    logs = {name: make_openai_log(name, [n % 2 > 0 for n in range(10)]) for name in ("small", "large")}
    logs["small"].append({"sample_id": "sums.0", "type": "sampling", "data": {"prompt": "judge", "sampled": ["no"]}})
    for name, lines in logs.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns, _ = read_evaluations(tmp_path)
    assert columns["small|correct"].tolist() == [0.0, 1.0] * 5
    assert columns["small|answer"].tolist() == ["4"] * 10
    assert columns["prompt"][0] == "Sum 0?"


@pytest.mark.parametrize(("keep", "message"), [(-1, "has not ended"), (None, "has two events 'match'")])
def test_ambiguous_logs_of_openai_evals_are_rejected(tmp_path: Path, keep: int | None, message: str) -> None:
    """A log without a report is a part of an evaluation; of two verdicts neither is known to count."""
    lines = make_openai_log("small", [True] * 10)
    lines = [*lines[:keep], *([] if keep else [lines[2]])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UnfoldError, match=message):
        read_evaluations(tmp_path)
