"""Spec keys of the split: shares of a random split, sites, a time, a site left out, or a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from unfoldkit.api import Fraction, Model, Problem

PARTS = ("train", "calibrate", "test")
TAGS: Mapping[str, str] = {"column": "by_site", "time": "by_time", "leave_out": "by_rest", "file": "by_file"}


def _as_words(value: Any) -> Any:
    """Write sites as text: YAML reads the site ``1`` as a number."""
    from unfold_cascade.schema.cell_values import label_text

    return tuple(label_text(each) for each in value) if isinstance(value, (list, tuple)) else value


Sites = Annotated[tuple[str, ...], BeforeValidator(_as_words), Field(min_length=1)]


class Split(Model):
    """Shares of the cases: ``train`` fits and tunes, ``calibrate`` certifies, ``test`` is reported."""

    train: Fraction = 0.5
    calibrate: Fraction = 0.25
    test: Fraction = 0.25


LOG_SPLIT = Split(train=0.25, calibrate=0.6, test=0.15)
"""The shares of a log of language models for which the spec states none: nothing is fitted, so more rows certify."""


class SiteSplit(Model):
    """Parts by the values of a column, such as hospitals.

    A column that holds the words train, calibrate and test is used unchanged. Otherwise each part names its values:
    those that no part names are for training, and without ``calibrate`` a third of the training cases certify. Without
    any names, whole sites are drawn.
    """

    column: str = Field(min_length=1, description="a column; one value for all rows of a group or patient")
    train: Sites | None = Field(default=None, description="its values in the training part")
    calibrate: Sites | None = Field(default=None, description="its values in the certifying part")
    test: Sites | None = Field(default=None, description="its values in the test part")


class TimeSplit(Model):
    """Parts in time order, by the first time of each case or patient.

    Without bounds the earliest half trains, the next quarter certifies. Without ``calibrate``, the earlier half of what
    follows ``train`` certifies.
    """

    time: str = Field(min_length=1, description="a column of dates or numbers")
    train: str | None = Field(default=None, description='the end of the training part, such as "< 2025-01"')
    calibrate: str | None = Field(default=None, description='the end of the certifying part, such as "< 2025-06"')


class LeaveOutSplit(Model):
    """A random split for the plan; besides, each value of a column is left out in turn and evaluated as a new site."""

    leave_out: str = Field(min_length=1, description="a column, such as the hospital")
    train: Fraction = 0.5
    calibrate: Fraction = 0.25
    test: Fraction = 0.25


class FileSplit(Model):
    """Parts from a CSV, Parquet or JSON Lines file.

    Its column ``part`` holds the words train, calibrate and test; a second column, with the name of a column of the
    table, identifies them. Without one, the rows are those of the table in order.
    """

    file: str = Field(min_length=1, description="relative to the spec")


def _tag(value: Any) -> str:
    # no tag is also a key: locations of errors hold both
    for key, tag in TAGS.items():
        if key in value if isinstance(value, Mapping) else hasattr(value, key):
            return tag
    return "shares"


AnySplit = Annotated[
    Annotated[Split, Tag("shares")]
    | Annotated[SiteSplit, Tag("by_site")]
    | Annotated[TimeSplit, Tag("by_time")]
    | Annotated[LeaveOutSplit, Tag("by_rest")]
    | Annotated[FileSplit, Tag("by_file")],
    Discriminator(_tag),
    Field(
        description="parts to train on, to certify on and to report: at random, by site, in time order or from a file"
    ),
]


def split_problems(split: AnySplit, *, is_bundled: bool) -> Iterator[Problem]:
    """Yield shares that do not add up to 1 or leave a part empty, sites in two parts, and bounds without a time."""
    path = ("data", "split")
    if isinstance(split, (Split, LeaveOutSplit)):
        total = split.train + split.calibrate + split.test
        if abs(total - 1) > 1e-9:
            yield Problem(path, f"the shares add up to {total:g}, not 1")
        for name in PARTS:
            if getattr(split, name) <= 0:
                yield Problem((*path, name), "must be above 0")
    if is_bundled and not isinstance(split, Split):
        yield Problem(path, "a data set of scikit-learn is split at random", "shares such as {train: 50%}")
    if isinstance(split, SiteSplit):
        yield from _site_problems(split)
    if isinstance(split, TimeSplit):
        yield from _bound_problems(split)


def _site_problems(split: SiteSplit) -> Iterator[Problem]:
    seen = dict[str, str]()
    for part in PARTS:
        for site in getattr(split, part) or ():
            if site in seen:
                yield Problem(("data", "split", part), f'"{site}" is also in {seen[site]}')
            seen[site] = part


def _bound_problems(split: TimeSplit) -> Iterator[Problem]:
    from unfold_cascade.schema.cell_values import parse_bound

    for part in ("train", "calibrate"):
        text = getattr(split, part)
        if text is not None and parse_bound(text) is None:
            yield Problem(("data", "split", part), f'"{text}" is not a bound', 'such as "< 2025-01"')
