"""Instances of EC2 through boto3: asked for once, tagged, terminated at the end and after a crash.

The order stands in the ledger before the request goes out, and every instance carries the run and the order as tags
from its first moment, so that whatever a lost answer, a retry or a killed driver leaves behind is found again. A
client token alone would not do: it covers a repeated request, not a driver that is gone.
"""

from __future__ import annotations

import datetime as dt
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from unfold_tuning.job.profile import Machine
from unfold_tuning.schema.models import Launch
from unfold_tuning.trial.ledger import Ledger
from unfoldkit.api import broken, fail
from unfoldkit.catalog.sanity import absurd

RUN_TAG = "unfold-run"
ORDER_TAG = "unfold-order"
FOLDER_TAG = "unfold-folder"
EXPIRES_TAG = "unfold-expires"
ALIVE = ("pending", "running", "stopping", "stopped")
GONE = ("shutting-down", "terminated")
POLL = 1.0
ATTEMPTS = 3
LONGEST_WAIT = 900.0


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for: the machine, how it is launched, the driver's Ray, when a forgotten one ends itself."""

    machine: Machine
    launch: Launch
    head: str
    folder: str
    expires: float


@dataclass(slots=True)
class AwsFleet:
    """The instances of one run. ``poll`` is the time between two questions, in seconds."""

    ec2: Any
    request: Request
    region: str
    ledger: Ledger
    wall: Callable[[], float] = time.time
    poll: float = POLL
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("unfoldkit"))

    @property
    def run(self) -> str:
        """The name under which the run's instances are found, the same after a crash; the region is kept with it."""
        self.ledger.fact("aws-region", self.region)
        return str(self.ledger.fact("aws-run") or self.ledger.fact("aws-run", uuid.uuid4().hex))

    def rent(self, count: int, watch: Callable[[], None]) -> list[str]:
        """See :class:`~unfold_tuning.cluster.provider.Fleet`.

        Raises:
            UnfoldError: the price cannot be true, AWS refused, or an instance did not come to run.
        """
        if count <= 0:
            return []
        reason = absurd(self.request.machine.price)
        if reason:
            raise fail(f"nothing is rented: {reason}", key="cloud.instances", hint="unfold catalog shows prices")
        token = f"{self.run}-{len(self.ledger.orders())}"
        self.ledger.ordered(token, count, self.wall())
        try:
            names = self._asked(token, count)
            self._run(names, watch)
        except BaseException:
            # nobody else knows these yet, and they cost money from now on
            self._terminate(list(self._alive(ORDER_TAG, token)))
            raise
        return names

    def release(self, name: str) -> None:
        """See :class:`~unfold_tuning.cluster.provider.Fleet`."""
        self._terminate([name])

    def recover(self) -> None:
        """See ``Fleet`` in ``provider.py``; an instance that the ledger lacks is billed from its launch on."""
        known = {life.id for life in self.ledger.lives()}
        for item in self._described([{"Name": f"tag:{RUN_TAG}", "Values": [self.run]}]):
            name = item["InstanceId"]
            if name not in known:
                self.ledger.node_runs(name, self.request.machine.price, item["LaunchTime"].timestamp())
            ended = ended_at(item)
            if ended is not None:
                self.ledger.node_ends(name, ended)
            elif item["State"]["Name"] not in GONE:
                self._terminate([name])

    def close(self) -> None:
        """See :class:`~unfold_tuning.cluster.provider.Fleet`.

        Raises:
            UnfoldError: an instance may still run; the message names it.
        """
        self._terminate(list(self._alive(RUN_TAG, self.run)))

    def _asked(self, token: str, count: int) -> list[str]:
        from botocore.exceptions import ClientError, HTTPClientError

        found: list[str] = []
        for attempt in range(ATTEMPTS):
            try:
                made = self.ec2.run_instances(**self._order(token, count))
                found = [item["InstanceId"] for item in made["Instances"]]
                break
            except ClientError as error:
                hint = "another type or region, or a quota: aws service-quotas list-service-quotas --service-code ec2"
                raise fail(f"AWS refused {count} x {self.request.machine.name}: {error}", hint=hint) from error
            except HTTPClientError as error:
                # the answer is lost, the instances may be there
                found = list(self._alive(ORDER_TAG, token))
                if found:
                    break
                if attempt == ATTEMPTS - 1:
                    raise fail(f"AWS does not answer: {error}") from error
        return self._exactly(token, count, found)

    def _exactly(self, token: str, count: int, found: list[str]) -> list[str]:
        more = [name for name in self._alive(ORDER_TAG, token) if name not in found]
        kept = [*found, *more][:count]
        surplus = [*found, *more][count:]
        if surplus:
            self.log.warning("AWS gave %d instances too many; they end at once", len(surplus))
            self._terminate(surplus)
        return kept

    def _run(self, names: Sequence[str], watch: Callable[[], None]) -> None:
        waiting, began = set(names), self.wall()
        while waiting:
            # by filter: asked by id, an instance that is a second old may be an error
            for item in self._described([{"Name": "instance-id", "Values": sorted(waiting)}]):
                waiting -= self._ready(item)
            if waiting and self.wall() - began > LONGEST_WAIT:
                raise fail(f"{len(waiting)} instances are still pending after {LONGEST_WAIT:g} s", key="cloud")
            watch()
            if waiting:
                time.sleep(self.poll)

    def _ready(self, item: Any) -> set[str]:
        state = item["State"]["Name"]
        if state in GONE:
            reason = item.get("StateReason", {}).get("Message", "no reason given")
            raise fail(f"{item['InstanceId']} ended before it ran: {reason}", hint="another type, region or market")
        if state != "running":
            return set()
        self.ledger.node_runs(item["InstanceId"], self.request.machine.price, self.wall())
        return {item["InstanceId"]}

    def _terminate(self, names: Sequence[str]) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        for attempt in range(ATTEMPTS if names else 0):
            try:
                done = self.ec2.terminate_instances(InstanceIds=list(names))["TerminatingInstances"]
            except (BotoCoreError, ClientError) as error:
                self.log.warning("terminating %s: %s", " ".join(names), error)
                time.sleep(self.poll * attempt)
                continue
            for item in done:
                self.ledger.node_ends(item["InstanceId"], self.wall())
            return
        if names:
            hint = f"aws ec2 terminate-instances --instance-ids {' '.join(names)}; unfold doctor looks for them too"
            raise broken(f"{', '.join(names)} may still run and cost money", hint=hint)

    def _alive(self, tag: str, value: str) -> Iterator[str]:
        filters = [{"Name": f"tag:{tag}", "Values": [value]}, {"Name": "instance-state-name", "Values": list(ALIVE)}]
        yield from (item["InstanceId"] for item in self._described(filters))

    def _described(self, filters: list[dict[str, Any]]) -> Iterator[Any]:
        yield from described(self.ec2, filters)

    def _order(self, token: str, count: int) -> dict[str, Any]:
        launch, machine = self.request.launch, self.request.machine
        optional = {
            "SubnetId": launch.subnet,
            "SecurityGroupIds": list(launch.security_groups) or None,
            "IamInstanceProfile": {"Name": launch.role} if launch.role else None,
            "InstanceMarketOptions": _spot() if machine.market == "spot" else None,
        }
        return {
            "ImageId": launch.image,
            "InstanceType": machine.name,
            "MinCount": count,
            "MaxCount": count,
            "ClientToken": token,
            "UserData": user_data(self.request, self.wall()),
            "InstanceInitiatedShutdownBehavior": "terminate",
            "TagSpecifications": [{"ResourceType": "instance", "Tags": self._tags(token)}],
            **{key: value for key, value in optional.items() if value is not None},
        }

    def _tags(self, token: str) -> list[dict[str, str]]:
        expires = dt.datetime.fromtimestamp(self.request.expires, dt.UTC).isoformat(timespec="seconds")
        tags = {RUN_TAG: self.run, ORDER_TAG: token, FOLDER_TAG: self.request.folder, EXPIRES_TAG: expires}
        return [{"Key": key, "Value": value[:256]} for key, value in ({"Name": "unfold", **tags}).items()]


def described(ec2: Any, filters: Iterable[dict[str, Any]]) -> Iterator[Any]:
    """Yield the instances that filters admit, page by page."""
    for page in ec2.get_paginator("describe_instances").paginate(Filters=list(filters)):
        for reservation in page["Reservations"]:
            yield from reservation["Instances"]


def ended_at(item: Any) -> float | None:
    """Return when an instance was terminated, in seconds of the wall clock, if AWS says so.

    It does in words: ``User initiated (2026-11-24 21:00:00 GMT)``.
    """
    found = re.search(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)", item.get("StateTransitionReason", ""))
    if item["State"]["Name"] not in GONE or found is None:
        return None
    return dt.datetime.fromisoformat(found[1]).replace(tzinfo=dt.UTC).timestamp()


def user_data(request: Request, now: float) -> str:
    """Return what an instance runs when it starts: its own end, the user's set-up, and a raylet of its name."""
    minutes = max(1, round((request.expires - now) / 60))
    metadata = "http://169.254.169.254/latest"
    resources = f'"{{\\"unfold-$ID\\": {request.machine.accelerators}}}"'
    lines = [
        "#!/bin/sh",
        # a driver that is lost with its machine cannot terminate anything
        f"shutdown -h +{minutes}",
        request.launch.setup,
        f"TOKEN=$(curl -sX PUT {metadata}/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: 600')",
        f'ID=$(curl -s -H "X-aws-ec2-metadata-token: $TOKEN" {metadata}/meta-data/instance-id)',
        f"ray start --address={request.head} --disable-usage-stats --resources={resources}",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def client(region: str) -> Any:
    """Return EC2 of a region with the caller's own credentials; questions are repeated, never for long."""
    import boto3
    from botocore.config import Config

    config = Config(retries={"mode": "standard", "max_attempts": 4}, connect_timeout=10, read_timeout=60)
    return boto3.client("ec2", region_name=region, config=config)


def _spot() -> dict[str, Any]:
    once = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
    return {"MarketType": "spot", "SpotOptions": once}
