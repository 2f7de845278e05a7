"""Finds what runs have left behind, for ``unfold doctor``: instances by their tags, clusters of SkyPilot by name."""

from __future__ import annotations

import datetime as dt
import importlib.util
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unfold_tuning.cluster.aws import (
    ALIVE_STATES,
    EXPIRES_TAG,
    FOLDER_TAG,
    RUN_TAG,
    describe_error,
    describe_instances,
    list_request_errors,
)
from unfold_tuning.cluster.skypilot import RUN_FACT, InstalledSkyPilot, SkyClient, SkyRequestError, name_prefix
from unfoldkit.api import CheckResult, RunDir, UnfoldError

LEDGER_PATTERN = "runs/*/ledger.sqlite"
Ownership = Literal["held", "away", "orphan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedInstance:
    """An instance with our tags that has not ended.

    Attributes:
        name: The instance id.
        region: Its region.
        instance_type: Its type.
        ownership: ``held`` by a driver here, of a run on another machine (``away``), or an ``orphan``.
        folder: Folder of its run.
    """

    name: str
    region: str
    instance_type: str
    ownership: Ownership
    folder: str


def check_orphans() -> CheckResult:
    """Check for orphans in the configured region and in those of the runs below the working directory."""
    try:
        import boto3
    except ModuleNotFoundError:
        return CheckResult(ok=True, message="boto3 is not installed, so nothing was rented: not checked")

    now = dt.datetime.now(dt.UTC)
    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            return CheckResult(ok=True, message="no AWS credentials: not checked")
        recorded = list_ledger_facts(Path(), "aws-region").values()
        regions = sorted({*recorded, *filter(None, [session.region_name])})
        instances = [
            instance
            for region in regions
            for instance in find_tagged_instances(session.client("ec2", region_name=region), region, now)
        ]
    except list_request_errors() as error:
        return CheckResult(ok=True, message=f"AWS could not be queried: {describe_error(error)}")
    return report_orphans(instances, regions)


def report_orphans(instances: list[TaggedInstance], regions: list[str]) -> CheckResult:
    """Report orphans with the commands that terminate them."""
    orphans = [instance for instance in instances if instance.ownership == "orphan"]
    if not orphans:
        in_use = f"; {len(instances)} are in use or belong to another machine" if instances else ""
        return CheckResult(ok=True, message=f"no orphans in {', '.join(regions) or 'any region'}{in_use}")
    names = ", ".join(
        f"{orphan.name} ({orphan.instance_type}, {orphan.region}, run {orphan.folder or 'unknown'})"
        for orphan in orphans
    )
    commands = "; ".join(
        f"aws ec2 terminate-instances --region {region} --instance-ids {' '.join(_list_names(orphans, region))}"
        for region in sorted({orphan.region for orphan in orphans})
    )
    hint = f"run the same unfold train again, which terminates them, or: {commands}"
    return CheckResult(ok=False, message=f"left running and billed: {names}", hint=hint)


def find_tagged_instances(ec2: Any, region: str, now: dt.datetime) -> Iterator[TaggedInstance]:
    """Yield the instances of a region that carry our tag and have not ended."""
    filters = [
        {"Name": "tag-key", "Values": [RUN_TAG]},
        {"Name": "instance-state-name", "Values": list(ALIVE_STATES)},
    ]
    for instance in describe_instances(ec2, filters):
        tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
        yield TaggedInstance(
            name=instance["InstanceId"],
            region=region,
            instance_type=instance["InstanceType"],
            ownership=classify_ownership(tags, now),
            folder=tags.get(FOLDER_TAG, ""),
        )


def classify_ownership(tags: Mapping[str, str], now: dt.datetime) -> Ownership:
    """Classify an instance by its tags.

    If the run's folder is here, a driver holds the instance as long as the folder is locked. Otherwise it belongs to
    another machine until it expires.
    """
    folder = Path(tags.get(FOLDER_TAG, "") or "/nowhere")
    if folder.is_dir():
        return "held" if _is_locked(folder) else "orphan"
    try:
        return "away" if dt.datetime.fromisoformat(tags[EXPIRES_TAG]) > now else "orphan"
    except (KeyError, ValueError):
        return "orphan"


def check_clusters(client: SkyClient | None = None) -> CheckResult:
    """Check for clusters that runs below the working directory have left with SkyPilot; its client if left out."""
    runs = list_ledger_facts(Path(), RUN_FACT)
    if not runs:
        return CheckResult(ok=True, message="no run here has used SkyPilot")
    if client is None and importlib.util.find_spec("sky") is None:
        return CheckResult(ok=True, message="SkyPilot is not installed: not checked")
    client = client or InstalledSkyPilot()
    try:
        orphans = {
            cluster.name: folder
            for folder, run in runs.items()
            if not _is_locked(folder)
            for cluster in client.list_clusters(name_prefix(run))
            if cluster.ended_at is None
        }
    except SkyRequestError as error:
        return CheckResult(ok=True, message=f"SkyPilot could not be queried: {error}")
    if not orphans:
        return CheckResult(ok=True, message="no orphans")
    names = ", ".join(f"{name} (run {folder})" for name, folder in orphans.items())
    hint = f"run the same unfold train again, which ends them, or: sky down {' '.join(orphans)}"
    return CheckResult(ok=False, message=f"left running and billed: {names}", hint=hint)


def list_ledger_facts(folder: Path, key: str) -> dict[Path, str]:
    """List a fact of the runs below a folder that have recorded it, by the folder of the run."""
    facts: dict[Path, str] = {}
    for path in sorted(path for path in folder.glob(LEDGER_PATTERN) if path.is_file()):
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as base:
            try:
                rows = base.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchall()
            except sqlite3.Error:
                continue
            facts.update((path.parent, row[0].strip('"')) for row in rows)
    return facts


def _is_locked(folder: Path) -> bool:
    try:
        with RunDir(folder).locked():
            return False
    except UnfoldError:
        return True


def _list_names(orphans: list[TaggedInstance], region: str) -> list[str]:
    return [orphan.name for orphan in orphans if orphan.region == region]
