"""Instances that a run has left behind: found by their tags, for ``unfold doctor``."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unfold_tuning.cluster.aws import ALIVE, EXPIRES_TAG, FOLDER_TAG, RUN_TAG, described
from unfoldkit.api import CheckResult, RunDir, UnfoldError

LEDGERS = "runs/*/ledger.sqlite"


@dataclass(frozen=True, slots=True)
class Found:
    """A running instance of ours: ``held`` by a driver here, of another machine (``away``), or an ``orphan``."""

    name: str
    region: str
    kind: str
    state: Literal["held", "away", "orphan"]
    folder: str


def left_running() -> CheckResult:
    """Look for instances with our tags, in the region that is set and in those of the runs in this folder."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    session = boto3.Session()
    if session.get_credentials() is None:
        return CheckResult(ok=True, message="no AWS credentials here: not looked for")
    now, regions = dt.datetime.now(dt.UTC), sorted({*ledger_regions(Path()), *filter(None, [session.region_name])})
    try:
        found = [item for region in regions for item in look(session.client("ec2", region_name=region), region, now)]
    except (BotoCoreError, ClientError) as error:
        return CheckResult(ok=True, message=f"AWS was not asked: {error}")
    return told(found, regions)


def told(found: list[Found], regions: list[str]) -> CheckResult:
    """Return what a check says of the instances that were found."""
    lost = [item for item in found if item.state == "orphan"]
    if not lost:
        rest = f"; {len(found)} are held or of another machine" if found else ""
        return CheckResult(ok=True, message=f"none is left in {', '.join(regions) or 'no region'}{rest}")
    names = ", ".join(f"{item.name} ({item.kind}, {item.region}, of {item.folder or 'no run'})" for item in lost)
    ends = "; ".join(
        f"aws ec2 terminate-instances --region {region} --instance-ids {' '.join(_names(lost, region))}"
        for region in sorted({item.region for item in lost})
    )
    hint = f"the same unfold train goes on and ends them, or: {ends}"
    return CheckResult(ok=False, message=f"left running and paid: {names}", hint=hint)


def look(ec2: Any, region: str, now: dt.datetime) -> Iterator[Found]:
    """Yield the running instances that carry our tag."""
    filters = [{"Name": "tag-key", "Values": [RUN_TAG]}, {"Name": "instance-state-name", "Values": list(ALIVE)}]
    for item in described(ec2, filters):
        tags = {tag["Key"]: tag["Value"] for tag in item.get("Tags", [])}
        yield Found(item["InstanceId"], region, item["InstanceType"], state(tags, now), tags.get(FOLDER_TAG, ""))


def state(tags: Mapping[str, str], now: dt.datetime) -> Literal["held", "away", "orphan"]:
    """Return whether a driver holds an instance: its run's folder is here and locked, or not here and not expired."""
    folder = Path(tags.get(FOLDER_TAG, "") or "/nowhere")
    if folder.is_dir():
        return "held" if _locked(folder) else "orphan"
    try:
        return "away" if dt.datetime.fromisoformat(tags[EXPIRES_TAG]) > now else "orphan"
    except (KeyError, ValueError):
        return "orphan"


def ledger_regions(folder: Path) -> Iterator[str]:
    """Yield the regions in which runs below a folder have rented."""
    for path in sorted(path for path in folder.glob(LEDGERS) if path.is_file()):
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as base:
            try:
                rows = base.execute("SELECT value FROM facts WHERE key = 'aws-region'").fetchall()
            except sqlite3.Error:
                continue
            yield from (row[0].strip('"') for row in rows)


def _locked(folder: Path) -> bool:
    try:
        with RunDir(folder).locked():
            return False
    except UnfoldError:
        return True


def _names(found: list[Found], region: str) -> list[str]:
    return [item.name for item in found if item.region == region]
