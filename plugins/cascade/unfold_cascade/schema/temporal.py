"""Spec keys of data over time: sources, split, transitions, alerts and drift."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from unfold_cascade.schema.splits import AnySplit, Split
from unfoldkit.api import Model, Percent


class PhysioNetData(Model):
    """Hourly records of the PhysioNet/CinC Challenge 2019: one psv file per patient."""

    source: Literal["physionet2019"]
    path: str = Field(min_length=1, description="a folder of .psv files, a .zip or a .tar(.xz), relative to the spec")
    group: Literal["patient"] = Field(default="patient", description="the unit of the split and of the certificate")
    patients: int | None = Field(default=None, ge=24, description="read only this many patients, for a quick look")
    split: AnySplit = Split()


class LongData(Model):
    """A CSV, Parquet or JSON Lines file with one row per entity and hour."""

    source: Literal["long"]
    path: str = Field(
        min_length=1, description="a .csv, .jsonl or .json file, also as .gz, or a .parquet file, relative to the spec"
    )
    entity: str = Field(description="the column that names the entity of a row")
    time: str = Field(description="the column of the time: hours as numbers, or dates")
    group: str | None = Field(
        default=None,
        description="a column: entities with the same value (the stays of a patient) stay in one part of the split, "
        "and the certificate covers the average group",
    )
    split: AnySplit = Split()


class Moves(Model):
    """How a case moves through the stages."""

    entry: Literal["reset", "sticky"] = Field(
        default="reset", description="the model that an hour starts with: the first, or the one that decided last"
    )
    confirm: int = Field(default=1, ge=1, le=24, description="consecutive positive hours before a case moves on")
    advance: Literal["same-step", "next-step"] = Field(
        default="next-step", description="when the next stage is evaluated: in the same hour, or from the next one on"
    )
    alarm: Literal["hourly", "latched"] = Field(
        default="hourly", description="decide the last stage every hour, or keep its first alarm"
    )


class Alerts(Model):
    """How often the last stage may alert; all policies are compared at this rate."""

    per_100h: Annotated[float, Field(gt=0, lt=100)] = Field(default=10.0, description="alerts per 100 event-free hours")
    utility_margin: Annotated[float, Field(gt=-1, lt=1)] = Field(
        default=0.0,
        description="utility that a cascade may lose against the baseline on tuning patients; if negative, must gain",
    )
    auprc_margin: Annotated[float, Field(gt=-1, lt=1)] = Field(
        default=0.0, description="the same for average precision (AUPRC)"
    )


class Drift(Model):
    """When new data count as different from those of the plan."""

    audit: Percent = Field(
        default=0.05, ge=0.0, le=1.0, description="share of cases that a server lets the baseline decide as well"
    )
    level: Percent = Field(
        default=0.01, gt=0.0, lt=0.5, description="chance that a check of unchanged data reports drift"
    )
    margin: Percent = Field(default=0.02, ge=0.0, lt=1.0, description="smallest change of a share that counts")
