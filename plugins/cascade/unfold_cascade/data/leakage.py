"""Leakage in a table: rows that repeat others, which must share a part of the split, and columns that hold the label.

Copies differ from coincidences. Two rows of a coarse table (three categories, confidences of one digit) are often
equal by chance, and stay independent cases. Copies share a value that no other row has, or occur equally often.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, Hashes, IntArray

MAX_COLUMNS = 64
"""Columns in which values are counted; of wider tables, evenly spread ones."""
TREE_COLUMNS = 4
SPECIFIC_SHARE = 0.5
MAX_CHANCE_SHARE = 0.01
"""Share of rows that occur twice up to which a row of another table is equal by no chance."""
MIN_REPEATED_SHARE = 0.2
"""Share of repeated rows from which rows that differ in one column only count as copies."""
RADII = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Distances, in standard deviations of each column, up to which rows may be near-identical."""
JITTERS = (0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28)
"""Mean differences of rows, in standard deviations of the columns, that copies with added noise may have."""
MIN_ISOLATED_SHARE = 0.8
MIN_STEPS_IN_RADIUS = 3.0
MAX_COMPARED = 30_000
CHUNK = 500
LARGEST = 3e38
MAX_NEIGHBOURS = 64
SAMPLE = 500
MIN_CASES = 20
MIN_STEPS = 500
MIN_LABEL_SCORE = 0.995
MIN_MARKED_SHARE = 0.2
MIN_LIKELIHOOD_RATIO = 100.0
"""How many times as often a mark of a label occurs with it; the best diagnostic tests reach about fifty."""
MIN_YOUDEN = 0.95
"""Sensitivity plus specificity minus 1 of a column that is nearly the label."""
MAX_EXPONENT = 300
"""Columns with larger powers of two are scaled down: their squares would overflow."""


@dataclass(frozen=True, slots=True)
class LabelMark:
    """A state of a column that occurs with one label and hardly any other, as what follows from an outcome does.

    ``state`` is ``filled``, ``empty``, ``nonzero`` or a number; it marks a ``share`` of the cases of ``label``.
    """

    column: str
    state: str
    label: int
    share: float


@dataclass(frozen=True, slots=True)
class Copies:
    """Rows that repeat others: the (n,) number of the distinct row that each row repeats, and how many repeat one.

    ``identical`` rows repeat an earlier one in every column, ``near`` ones in all but one, or up to a tiny difference.
    """

    unit: IntArray
    identical: int
    near: int

    @property
    def distinct(self) -> int:
        """The number of distinct rows."""
        return int(self.unit.max()) + 1


def find_copies(numbers: FloatArray, words: Sequence[np.ndarray] = (), *, finds_noisy: bool = True) -> Copies | None:
    """Find the rows of a table that are copies of others; ``None`` if there are none.

    Args:
        numbers: (n, d) numeric columns, NaN where a value is missing.
        words: Columns of (n,) words, such as recorded answers.
        finds_noisy: Also find copies with noise in every column.
    """
    if len(numbers) < 2:
        return None
    # a constant column says nothing about a row
    numbers = numbers[:, (numbers != numbers[0]).any(axis=0)]
    if not numbers.shape[1]:
        return None
    numbers = _scale_down(numbers)
    keys = _hash_columns(numbers, words)
    whole = keys.sum(axis=1, dtype=np.uint64)
    exact = np.unique(whole, return_inverse=True)[1]
    is_copied = _mark_copies(numbers, exact)
    unit = _number(np.where(is_copied, exact, exact.max() + 1 + np.arange(len(exact))))
    identical = len(unit) - int(unit.max()) - 1
    near = join_groups(unit, _find_near_copies(numbers, words, unit))
    near = join_groups(near, _find_copies_but_one(numbers, keys, whole))
    if finds_noisy:
        near = join_groups(near, _find_jittered_copies(numbers, words, near))
    extra = int(unit.max()) - int(near.max())
    return Copies(near, identical, extra) if identical + extra else None


def hash_rows(numbers: FloatArray) -> Hashes:
    """Hash the rows of (n, d) values, missing ones included: rows of two tables with equal hashes are equal."""
    hashes: Hashes = _hash_columns(numbers, ()).sum(axis=1, dtype=np.uint64)
    return hashes


def hash_unique_rows(numbers: FloatArray) -> Hashes:
    """Hash the rows of (n, d) values that no other case equals by chance, to recognize them in other tables."""
    value, first, count = np.unique(hash_rows(numbers), return_index=True, return_counts=True)
    is_rare = (count[count > 1].sum() <= MAX_CHANCE_SHARE * len(numbers)) & (count == 1)
    unique: Hashes = value[is_rare | _mark_specific(numbers[first])]
    return unique


def find_label_columns(columns: Mapping[str, FloatArray], labels: IntArray) -> tuple[str, ...]:
    """Find the columns that predict the label on their own, nearly without error: the label has probably leaked.

    Either each label is one interval of the column, or a small tree on it, fitted on half of the rows, predicts every
    label of the other half.

    Args:
        columns: (n,) values by name.
        labels: (n,) label numbers.
    """
    from sklearn.tree import DecisionTreeClassifier

    counts = np.bincount(labels)
    if (counts > 0).sum() < 2 or counts[counts > 0].min() < MIN_CASES:
        return ()
    half = np.random.default_rng(0).permutation(len(labels)) % 2 == 0
    target = labels[~half]
    leaves = 2 * int((counts > 0).sum())
    suspects = []
    for name, values in columns.items():
        # trees compare single-precision values
        x = np.clip(np.nan_to_num(values, nan=-LARGEST), -LARGEST, LARGEST)[:, None]
        order = np.lexsort((labels, x[:, 0]))
        is_change = np.diff(labels[order]) != 0
        changes = int(is_change.sum())
        if changes == leaves // 2 - 1 and (np.diff(x[order, 0])[is_change] > 0.0).all():
            # each label is one interval of the column, such as the number of a row in a sorted table
            suspects.append(name)
            continue
        if changes > leaves + 0.02 * len(labels):
            # few intervals could not predict the label
            continue
        tree = DecisionTreeClassifier(max_leaf_nodes=max(leaves, 2), random_state=0).fit(x[half], labels[half])
        is_right = tree.predict(x[~half]) == target
        if min(float(is_right[target == label].mean()) for label in np.unique(target)) >= MIN_LABEL_SCORE:
            suspects.append(name)
    return tuple(suspects)


def find_label_marks(columns: Mapping[str, FloatArray], labels: IntArray) -> tuple[LabelMark, ...]:
    """Find the columns that are filled, empty or on for many cases of one label, and for hardly any other.

    A measurement of the patient overlaps between labels; what is written down because of the outcome, such as the
    species that a culture grew, does not. Thresholds of measurements are not searched: strong ones are common.

    Args:
        columns: (n,) values by name, NaN where missing.
        labels: (n,) label numbers.
    """
    marks = (_find_label_mark(name, values, labels) for name, values in columns.items())
    return tuple(mark for mark in marks if mark is not None)


def _find_label_mark(name: str, values: FloatArray, labels: IntArray) -> LabelMark | None:
    """Find the state of a column with the largest likelihood ratio, if that is one of a mark."""
    counts = np.bincount(labels)
    best, mark = 0.0, None
    for state, is_on in _list_states(values):
        marked = np.bincount(labels[is_on], minlength=len(counts))
        share = marked / np.maximum(counts, 1)
        # one case more, as none of a few proves little
        elsewhere = (marked.sum() - marked + 1) / (len(labels) - counts + 1)
        ratio = share / elsewhere
        is_mark = (share >= MIN_MARKED_SHARE) & (ratio >= MIN_LIKELIHOOD_RATIO) | (share - elsewhere >= MIN_YOUDEN)
        label = int(np.where(is_mark & (marked >= MIN_CASES), ratio, 0.0).argmax())
        if is_mark[label] and marked[label] >= MIN_CASES and ratio[label] > best:
            best, mark = float(ratio[label]), LabelMark(name, state, label, float(share[label]))
    return mark


def _list_states(values: FloatArray) -> Iterator[tuple[str, BoolArray]]:
    """Yield the states of (n,) values: filled or empty, each of two numbers, or not zero where most are."""
    is_filled = ~np.isnan(values)
    finite = values[is_filled]
    if not len(finite):
        return
    if len(finite) < len(values):
        yield "filled", is_filled
        yield "empty", ~is_filled
    low, high = float(finite.min()), float(finite.max())
    if low < high and np.isin(finite, (low, high)).all():
        yield f"{low:g}", values == low
        yield f"{high:g}", values == high
    elif 2 * (finite == 0.0).sum() >= len(finite):
        yield "nonzero", is_filled & (values != 0.0)


def is_oracle(confidence: FloatArray, is_right: BoolArray) -> bool:
    """Whether a recorded confidence separates right from wrong answers without any error: it has seen the label.

    Args:
        confidence: (n,) confidences; rows without one (minus infinity) are ignored.
        is_right: (n,) whether the answer is right.
    """
    has_confidence = np.isfinite(confidence)
    right, wrong = confidence[has_confidence & is_right], confidence[has_confidence & ~is_right]
    return min(len(right), len(wrong)) >= MIN_CASES and bool(right.min() > wrong.max())


def _scale_down(numbers: FloatArray) -> FloatArray:
    """Divide the columns of (n, d) huge numbers by a power of two, so that they are at most 1."""
    exponent = np.frexp(np.fmax.reduce(np.abs(numbers), axis=0))[1]
    shift = np.where(exponent > MAX_EXPONENT, exponent, 0)
    scaled: FloatArray = np.ldexp(numbers, -shift) if shift.any() else numbers
    return scaled


def _hash_columns(numbers: FloatArray, words: Sequence[np.ndarray]) -> Hashes:
    """Hash each cell into (n, k) 64-bit keys; rows with equal sums of keys are equal."""
    with np.errstate(over="ignore"):
        seeds = np.arange(1, numbers.shape[1] + len(words) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        # one form for every NaN, and for both zeros
        bits = np.where(np.isnan(numbers), np.nan, numbers + 0.0).view(np.uint64)
        codes = [np.unique(np.asarray(column, dtype=str), return_inverse=True)[1].astype(np.uint64) for column in words]
        cells = np.column_stack([bits, *codes]) if codes else bits
        return mix_bits(cells ^ seeds)


def mix_bits(keys: Hashes) -> Hashes:
    """Mix the bits of 64-bit keys (SplitMix64)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _mark_copies(numbers: FloatArray, row: IntArray) -> BoolArray:
    """Mark the rows that equal others by more than coincidence; ``row`` (n,) numbers the distinct rows."""
    first = np.unique(row, return_index=True)[1]
    count = np.bincount(row)
    is_repeated = count > 1
    if not is_repeated.any():
        return np.zeros(len(row), dtype=np.bool_)
    if numbers.shape[1] == 1 and _count_chance_repeats(numbers[first, 0], len(row)) < 0.1 * (len(row) - len(first)):
        return is_repeated[row]
    is_specific = _mark_specific(numbers[first])
    if _are_even(count) or 2 * (is_repeated & is_specific).sum() >= is_repeated.sum():
        return is_repeated[row]
    return (is_repeated & is_specific)[row]


def _are_even(count: IntArray) -> bool:
    """Whether (k,) distinct rows occur about equally often, three times or more: by chance counts vary more."""
    return bool((count > 1).sum() >= MIN_CASES and count.mean() >= 3 and count.var() < 0.5 * count.mean())


def _count_chance_repeats(distinct: FloatArray, rows: int) -> float:
    """Estimate how many of some rows repeat another by chance, from the resolution of their one column."""
    values = np.unique(distinct[np.isfinite(distinct)])
    if len(values) < 2:
        return float(rows)
    cells = (values[-1] - values[0]) / float(np.diff(values).min())
    return float(rows * rows / (2.0 * cells))


def _mark_specific(distinct: FloatArray) -> BoolArray:
    """Mark the distinct rows with a value that no other row has, in a column where most rows have such a value."""
    is_specific = np.zeros(len(distinct), dtype=np.bool_)
    if distinct.shape[1] < 2:
        return is_specific
    for column in _select_columns(distinct).T:
        _, index, count = np.unique(column, return_inverse=True, return_counts=True)
        is_unique = count[index] == 1
        if is_unique.mean() >= SPECIFIC_SHARE:
            is_specific |= is_unique
    return is_specific


def _find_copies_but_one(numbers: FloatArray, keys: np.ndarray, whole: np.ndarray) -> IntArray:
    """Number rows that are equal in all columns but one, such as a visit number, if many are, and not by chance."""
    columns = range(min(keys.shape[1], MAX_COLUMNS)) if numbers.shape[1] > 1 else ()
    for column in columns:
        row = np.unique(whole - keys[:, column], return_inverse=True)[1]
        count = np.bincount(row)
        # one column that is left repeats by chance as well, such as the leaves of a tree, but not equally often
        if (count[row] > 1).mean() < MIN_REPEATED_SHARE or (numbers.shape[1] == 2 and not _are_even(count)):
            continue
        others = np.delete(numbers, column, axis=1) if column < numbers.shape[1] else numbers
        is_copied = _mark_copies(others, row)
        if is_copied.mean() >= MIN_REPEATED_SHARE:
            return _number(np.where(is_copied, row, row.max() + 1 + np.arange(len(row))))
    return np.arange(len(numbers))


def _find_near_copies(numbers: FloatArray, words: Sequence[np.ndarray], unit: IntArray) -> IntArray:
    """Number rows that differ from others by far less than rows do by chance.

    With a growing radius, chance joins more and more rows (2^d times as many at twice the radius, in d columns), while
    copies are joined at once. The radius is the largest at which twice the radius joins hardly more rows.
    """
    first = np.unique(unit, return_index=True)[1]
    alone = np.arange(len(numbers))
    is_fine = np.array([_is_continuous(column) for column in numbers[first].T], dtype=np.bool_)
    if len(first) < MIN_CASES or is_fine.sum() < 2:
        return alone
    block = _number_blocks(numbers[:, ~is_fine], words)[first]
    points = _standardize(numbers[first][:, is_fine])
    best = None
    pairs, distance, listed = _list_close_pairs(points, block)
    for radius in (each for each in RADII if each <= listed):
        near, wide = (_connect(len(first), pairs[distance <= scale * radius]) for scale in (1.0, 2.0))
        joined, more = (len(first) - int(group.max()) - 1 for group in (near, wide))
        largest = int(np.bincount(near).max())
        is_stable = joined > 0 and joined >= 0.8 * more and largest <= max(0.05 * len(first), MIN_CASES)
        is_like_copies = _are_compact(near, points, radius) and _are_specific(near, points, radius)
        if is_stable and is_like_copies:
            best = near
    if best is None:
        return alone
    group: IntArray = best[_number(unit)]
    return group


def _find_jittered_copies(numbers: FloatArray, words: Sequence[np.ndarray], unit: IntArray) -> IntArray:
    """Number rows that repeat others up to noise in every column, if a fifth of the rows do.

    Copies lie in a ball that nothing else comes near: its radius doubled holds no further row. Of independent rows in
    one dimension or more, at most half of those with a neighbour within twice the radius have all of them within the
    radius; here four fifths must. A radius below the resolution of a column shows nothing, and is not tried.
    """
    first, alone = np.unique(unit, return_index=True)[1], np.arange(len(numbers))
    is_fine = np.array([_is_continuous(column) for column in numbers[first].T], dtype=np.bool_)
    if not MIN_CASES <= len(first) <= MAX_COMPARED or is_fine.sum() < 2:
        return alone
    block = _number_blocks(numbers[:, ~is_fine], words)[first]
    points = _standardize(numbers[first][:, is_fine]) / np.sqrt(2.0 * is_fine.sum())
    steps = [np.diff(np.unique(column)).min() for column in points.T]
    radius = _find_isolating_radius(points, block, MIN_STEPS_IN_RADIUS * float(max(steps)))
    if radius is None:
        return alone
    pairs = [
        np.column_stack([rows[near[0]], near[1]])
        for rows in np.split(np.arange(len(points)), range(CHUNK, len(points), CHUNK))
        for near in (np.nonzero(_measure_distances(points, block, rows) <= radius),)
    ]
    group: IntArray = _connect(len(first), np.concatenate(pairs))[_number(unit)]
    return group


def _find_isolating_radius(points: FloatArray, block: IntArray, smallest: float) -> float | None:
    """Find the radius, at least ``smallest``, that joins and isolates most rows of a sample within their blocks."""
    sample = np.arange(len(points))[:: max(len(points) // SAMPLE, 1)]
    distance = _measure_distances(points, block, sample)
    best, most = None, MIN_REPEATED_SHARE
    for radius in (each for each in JITTERS if each >= smallest):
        # each row is its own neighbour
        near, wide = ((distance <= scale * radius).sum(axis=1) - 1 for scale in (1.0, 2.0))
        isolated = float(((near > 0) & (wide == near)).mean())
        is_isolating = isolated >= MIN_ISOLATED_SHARE * float((wide > 0).mean())
        if is_isolating and isolated >= most and near.max() <= max(0.05 * len(points), MIN_CASES):
            best, most = radius, isolated
    return best


def _measure_distances(points: FloatArray, block: IntArray, rows: IntArray) -> FloatArray:
    """Compute (m, n) the Euclidean distances of some rows to all, infinite to rows of other blocks."""
    squares = (points**2).sum(axis=1)
    distance = np.sqrt(np.maximum(squares[rows, None] + squares - 2.0 * points[rows] @ points.T, 0.0))
    return np.where(block[rows, None] == block, distance, np.inf)


def _is_continuous(column: FloatArray) -> bool:
    """Whether a column has a fine resolution: its range holds many steps of its smallest difference."""
    values = np.unique(column[np.isfinite(column)])
    return len(values) >= MIN_CASES and bool(values[-1] - values[0] >= MIN_STEPS * float(np.diff(values).min()))


def _number_blocks(coarse: FloatArray, words: Sequence[np.ndarray]) -> IntArray:
    if not coarse.shape[1] and not words:
        return np.zeros(len(coarse), dtype=np.int64)
    keys = _hash_columns(coarse, words).sum(axis=1, dtype=np.uint64)
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _standardize(values: FloatArray) -> FloatArray:
    filled = np.where(np.isfinite(values), values, np.nan)
    with np.errstate(invalid="ignore"):
        spread = np.nanstd(filled, axis=0)
    standard = np.nan_to_num(filled / np.where(spread > 0, spread, 1.0), nan=-1e3)
    return np.asarray(standard, dtype=np.float64)


def _list_close_pairs(points: FloatArray, block: IntArray) -> tuple[IntArray, FloatArray, float]:
    """List (m, 2) pairs of (n, d) points of one block and their (m,) largest difference, up to twice the last radius.

    Where more pairs are close than copies could explain, the radius is smaller; it is returned too, 0 for none.
    """
    from scipy.spatial import cKDTree

    narrow = _select_columns(points, TREE_COLUMNS)
    located = np.column_stack([narrow, block * 10.0])
    tree, sample = cKDTree(located), located[:: max(len(points) // SAMPLE, 1)]
    for radius in reversed(RADII):
        neighbours = tree.query_ball_point(sample, 2.0 * radius, p=np.inf, return_length=True)
        if neighbours.mean() > MAX_NEIGHBOURS:
            continue
        pairs: IntArray = tree.query_pairs(2.0 * radius, p=np.inf, output_type="ndarray").astype(np.int64)
        distance = np.abs(points[pairs[:, 0]] - points[pairs[:, 1]]).max(axis=1, initial=0.0)
        is_close = distance <= 2.0 * radius
        return pairs[is_close], distance[is_close], radius
    return np.zeros((0, 2), dtype=np.int64), np.zeros(0), 0.0


def _are_compact(group: IntArray, points: FloatArray, radius: float) -> bool:
    """Whether nearly all joined rows belong to groups that span at most four times the radius: no chains."""
    order = np.argsort(group, kind="stable")
    size = np.bincount(group)
    starts = np.concatenate(([0], np.cumsum(size)[:-1]))
    ordered = points[order]
    span = (np.maximum.reduceat(ordered, starts) - np.minimum.reduceat(ordered, starts)).max(axis=1)
    return bool(size[(span <= 4.0 * radius) & (size > 1)].sum() >= 0.9 * size[size > 1].sum())


def _are_specific(group: IntArray, points: FloatArray, radius: float) -> bool:
    """Whether most joined rows have a value, up to the radius, that no other group has: no common value such as 1.0."""
    _, first, size = np.unique(group, return_index=True, return_counts=True)
    is_specific = _mark_specific(np.round(points[first] / radius))
    return bool(2 * (is_specific & (size > 1)).sum() >= (size > 1).sum())


def _connect(size: int, pairs: IntArray) -> IntArray:
    """Number the (size,) groups that (m, 2) pairs connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    groups: IntArray = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def _select_columns(values: FloatArray, limit: int = MAX_COLUMNS) -> FloatArray:
    """Select up to ``limit`` columns, evenly spread."""
    width = values.shape[1]
    return values if width <= limit else values[:, np.linspace(0, width - 1, limit).astype(np.int64)]


def join_groups(a: IntArray, b: IntArray) -> IntArray:
    """Number the (n,) groups of rows that share a group in ``a`` or in ``b``, directly or through other rows."""
    a, b = _number(a), _number(b)
    width = int(a.max()) + 1
    return _number(_connect(width + int(b.max()) + 1, np.column_stack([a, width + b]))[a])


def _number(groups: IntArray) -> IntArray:
    numbered: IntArray = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    return numbered
