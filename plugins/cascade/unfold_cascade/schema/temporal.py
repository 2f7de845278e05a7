"""The keys of a spec that speaks of cases over time."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from unfoldkit.api import Fraction, Model, Percent


class Split(Model):
    """Shares of the cases: fitted and tuned on ``train``, certified on ``calibrate``, reported on ``test``."""

    train: Fraction = 0.5
    calibrate: Fraction = 0.25
    test: Fraction = 0.25


class PhysioNetData(Model):
    """Hourly records of the PhysioNet/CinC Challenge 2019: one psv file a patient."""

    source: Literal["physionet2019"]
    path: str = Field(min_length=1, description="a folder of .psv files, a .zip or a .tar(.xz), relative to the spec")
    group: Literal["patient"] = Field(default="patient", description="what is split and certified as a whole")
    patients: int | None = Field(default=None, ge=24, description="only the first so many, for a quick look")
    split: Split = Split()


class LongData(Model):
    """A CSV, Parquet or JSON Lines file with one row an entity and hour."""

    source: Literal["long"]
    path: str = Field(
        min_length=1, description="a .csv or .jsonl file, also as .gz, or a .parquet file, relative to the spec"
    )
    entity: str = Field(description="the column that says whose row it is")
    time: str = Field(description="the column of the time: hours as numbers, or dates")
    split: Split = Split()


TimedData = PhysioNetData | LongData


class Moves(Model):
    """How a case moves through the stages.

    ``entry``: at the next hour a stage begins with its first model again, or with the one that answered last.
    ``confirm``: so many hours in a row must say yes before the case moves to the next stage.
    ``advance``: the next stage is asked in the same hour, or from the next one.
    ``alarm``: the last stage is decided anew each hour, or its first yes ends the case.
    """

    entry: Literal["reset", "sticky"] = "reset"
    confirm: int = Field(default=1, ge=1, le=24)
    advance: Literal["same-step", "next-step"] = "next-step"
    alarm: Literal["hourly", "latched"] = "hourly"


class Alerts(Model):
    """How often the last stage may say yes, per 100 hours without the event; all policies are compared at it.

    ``utility_margin`` and ``auprc_margin`` are what a cascade may lose of either against the monolith, on the tuning
    patients; none by default, and below zero it must gain.
    """

    per_100h: Annotated[float, Field(gt=0, lt=100)] = 10.0
    utility_margin: Annotated[float, Field(gt=-1, lt=1)] = 0.0
    auprc_margin: Annotated[float, Field(gt=-1, lt=1)] = 0.0


class Drift(Model):
    """When new hours count as other hours than those that the cascade was tuned on.

    ``audit`` is the share of cases for which a server asks the monolith too, at every hour. ``level`` is the chance
    that a check of hours that did not change says no; ``margin`` is by how much a share must have changed to count.
    """

    audit: Percent = Field(default=0.05, ge=0.0, le=1.0)
    level: Percent = Field(default=0.01, gt=0.0, lt=0.5)
    margin: Percent = Field(default=0.02, ge=0.0, lt=1.0)
