"""Score tables of recorded predictions: logs of services that were called earlier, so no model is fitted."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.data.dataset import is_case, source_digest
from unfold_cascade.data.table import Frame, load_frame
from unfold_cascade.models.zoo import WHOLE
from unfold_cascade.planner.problem import Problem, RecordedModel
from unfold_cascade.planner.score_tables import ScoreTable, ScoreTables, goal_error_costs
from unfold_cascade.schema import cell_values
from unfoldkit.api import RunDir, fingerprint, user_error
from unfoldkit.safe_io.arrays import read_npz

RECORDED_FILE = "logs/recorded.npz"
READER_VERSION = 3
"""Increase it when logs are read in another way, so that stored tables are read again."""
MAX_UNKNOWN_SHARE = 0.95
MAX_MISSPELT_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class RecordedScores:
    """(n, M) answers, confidences and prices of recorded models.

    The confidence is minus infinity where a model gave no answer or no confidence, so no gate exits there.
    """

    answer: IntArray
    score: FloatArray
    call_prices: FloatArray


def load_recorded_tables(problem: Problem, directory: RunDir) -> ScoreTables:
    """Load the tables of recorded models; the log is read only if the run does not store them yet."""
    identity = [model.identity for model in problem.recorded]
    made_from = fingerprint(identity, problem.dataset.names, source_digest(problem.data.source), READER_VERSION)

    def read() -> bytes:
        frame = load_frame(problem.data.source)
        cases = is_case(problem.data, frame)
        scores = read_recorded_scores(problem.recorded, problem.dataset.names, frame)
        return _pack(RecordedScores(scores.answer[cases], scores.score[cases], scores.call_prices[cases]))

    return _build_tables(problem, _build_table(problem, directory.once(RECORDED_FILE, made_from, read)))


def load_stored_tables(problem: Problem, directory: RunDir, new_rows: Frame | None = None) -> ScoreTables:
    """Load the tables that the run stores, extended by the rows of ``new_rows``."""
    with directory.decoding(RECORDED_FILE, "recorded answers") as data:
        table = _build_table(problem, data)
    if new_rows is not None:
        scores = read_recorded_scores(problem.recorded, problem.dataset.names, new_rows)
        prices = table.call_prices
        table = replace(
            table,
            answer=np.concatenate([table.answer, scores.answer]),
            score=np.concatenate([table.score, scores.score]),
            call_prices=None if prices is None else np.concatenate([prices, scores.call_prices]),
        )
    return _build_tables(problem, table)


def read_recorded_scores(models: Sequence[RecordedModel], names: Sequence[str], frame: Frame) -> RecordedScores:
    """Read the answers, confidences and prices of recorded models; ``names`` are the labels.

    Raises:
        UnfoldError: A column is missing, the answers of a model are not labels, or a price is missing.
    """
    columns = [_read_model(model, names, frame) for model in models]
    answer, score, prices = (np.array(column).T for column in zip(*columns, strict=True))
    return RecordedScores(answer.astype(np.int64), score, prices)


def _build_tables(problem: Problem, table: ScoreTable) -> ScoreTables:
    error_costs, clusters = goal_error_costs(problem), problem.dataset.clusters
    return ScoreTables(table, {}, table, {}, {}, problem.cost.unit, error_costs, clusters)


def _build_table(problem: Problem, data: bytes) -> ScoreTable:
    stored, models = read_npz(data), problem.recorded
    has_call_prices = any(model.price_column is not None for model in models)
    call_prices = stored.get("paid") if has_call_prices else None
    if has_call_prices and call_prices is None:
        raise ValueError("the prices of the calls are missing")
    price = np.array([model.price for model in models])
    if call_prices is not None:
        price = call_prices[problem.dataset.rows.train].mean(axis=0)
    return ScoreTable(
        stage=problem.zoo.stages[0].name,
        group=WHOLE,
        models=tuple(model.name for model in models),
        answer=stored["answer"],
        score=stored["score"],
        price=price,
        feature_groups=tuple(frozenset[str]() for _ in models),
        latency_us=np.full(len(models), np.nan),
        call_prices=call_prices,
    )


def _read_model(model: RecordedModel, names: Sequence[str], frame: Frame) -> tuple[IntArray, FloatArray, FloatArray]:
    if model.prediction is not None:
        answer, is_missing = _read_answers(model.prediction, names, frame, model.name, f"{model.key}.prediction")
    else:
        answer, is_missing = _read_judgements(model, frame)
    confidence = frame.numbers(model.confidence, key=f"{model.key}.confidence")
    prices = _read_prices(model, frame, is_missing)
    if model.prediction is None:
        # a call that failed has no price either
        was_answered = np.isfinite(confidence) & ((prices > 0.0) | (model.price_column is None))
        _check_judged(model, frame, is_missing & was_answered)
    score = np.where(np.isnan(confidence) | is_missing, -np.inf, confidence)
    return answer, score, prices


def _read_answers(column: str, names: Sequence[str], frame: Frame, model: str, key: str) -> tuple[IntArray, BoolArray]:
    """Read the (n,) answers of a model, and where it gave none."""
    text = frame.text(column, key=key)
    _check_answers(text, names, model, key)
    number = {name: index for index, name in enumerate(names)}
    # an answer that is not a label of the data counts as wrong, whatever the truth
    answer = np.array([number.get(str(value), len(number)) for value in text], dtype=np.int64)
    return answer, ~cell_values.has_label(text) & (answer == len(number))


def _read_judgements(model: RecordedModel, frame: Frame) -> tuple[IntArray, BoolArray]:
    """Read (n,) 0 where an answer was right and 1 where it was wrong, and where there was none."""
    is_right = frame.judgements(model.score, model.correct_from, key=f"{model.key}.score")
    return np.where(is_right == 1.0, 0, 1), np.isnan(is_right)


def _check_judged(model: RecordedModel, frame: Frame, is_unknown: BoolArray) -> None:
    """Refuse answers that a gate may trust, but that no judge scored: without them, the others look better.

    Raises:
        UnfoldError: There is one; the error names the row.
    """
    if is_unknown.any():
        row = int(np.flatnonzero(is_unknown)[0])
        place = f'{frame.name}: row {row + 1} of column "{model.score}"'
        message = f'{place} has no score, but there is a confidence in "{model.confidence}"'
        hint = "score it, or empty the confidence where the call gave no answer"
        raise user_error(message, key=f"{model.key}.score", hint=hint)


def _read_prices(model: RecordedModel, frame: Frame, is_missing: BoolArray) -> FloatArray:
    """Read the (n,) price of each call; a call without an answer may have none."""
    if model.price_column is None:
        return np.full(len(is_missing), model.price)
    return frame.prices(model.price_column, is_missing, key=f"{model.key}.price")


def _check_answers(text: np.ndarray, names: Sequence[str], model: str, key: str) -> None:
    """Raise when the answers of a model seem to be labels in another notation."""
    answers = Counter(map(str, text[cell_values.has_label(text)]))
    unknown = Counter({answer: count for answer, count in answers.items() if answer not in names})
    by_lower_case = {name.casefold(): name for name in names}
    misspelt = sum(count for answer, count in unknown.items() if answer.casefold() in by_lower_case)
    few_unknown = unknown.total() < MAX_UNKNOWN_SHARE * answers.total()
    if not unknown or (few_unknown and misspelt < MAX_MISSPELT_SHARE * answers.total()):
        return
    examples = [answer for answer, _ in unknown.most_common(3)]
    hint = f"the labels are {_quote(names[:6])}{', ...' * (len(names) > 6)}"
    if misspelt:
        examples = [answer for answer, _ in unknown.most_common() if answer.casefold() in by_lower_case][:3]
        labels = _quote([by_lower_case[answer.casefold()] for answer in examples])
        hint = f"the labels are {labels}: write both in the same case"
    share = f"{unknown.total():,} of {answers.total():,} answers of {model!r}"
    raise user_error(f"{share} are not labels of the data, such as {_quote(examples)}", key=key, hint=hint)


def _quote(words: Sequence[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)


def _pack(scores: RecordedScores) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, answer=scores.answer, score=scores.score, paid=scores.call_prices)
    return stream.getvalue()
