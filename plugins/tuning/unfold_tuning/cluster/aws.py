"""EC2 instances through boto3: requested once, tagged, and terminated at the end and after a crash.

The ledger holds a request before it is sent, and every instance carries the run and the request as tags from its first
moment. Whatever a lost response, a retry or a killed driver leaves behind is therefore found again. A client token
alone would not suffice: it covers a repeated request, not a driver that is gone.
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

from unfold_tuning.job.problem import LaunchConfig
from unfold_tuning.job.profile import Machine
from unfold_tuning.trial.ledger import Ledger
from unfoldkit.api import internal_error, user_error
from unfoldkit.catalog.sanity import find_implausibility

RUN_TAG = "unfold-run"
ORDER_TAG = "unfold-order"
FOLDER_TAG = "unfold-folder"
EXPIRES_TAG = "unfold-expires"
ALIVE_STATES = ("pending", "running", "stopping", "stopped")
ENDED_STATES = ("shutting-down", "terminated")
MAX_TAG_LENGTH = 256
POLL_S = 1.0
MAX_ATTEMPTS = 3
START_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRequest:
    """What to launch.

    Attributes:
        machine: The instance type.
        launch: How it is launched.
        head_address: Address of the driver's Ray head.
        folder: Folder of the run.
        expires_at: Wall time at which a forgotten instance shuts itself down.
    """

    machine: Machine
    launch: LaunchConfig
    head_address: str
    folder: str
    expires_at: float


@dataclass(slots=True)
class AwsProvider:
    """The EC2 instances of one run; see :class:`~unfold_tuning.cluster.provider.NodeProvider`.

    Attributes:
        ec2: A boto3 client.
        request: What to launch.
        region: Region of the client.
        ledger: The ledger of the run.
        wall: The wall clock.
        poll_s: Seconds between two queries.
        log: Receives warnings.
    """

    ec2: Any
    request: LaunchRequest
    region: str
    ledger: Ledger
    wall: Callable[[], float] = time.time
    poll_s: float = POLL_S
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("unfoldkit"))

    @property
    def run_id(self) -> str:
        """The tag by which the run's instances are found, the same after a crash; recorded with the region."""
        self.ledger.record_fact("aws-region", self.region)
        return str(self.ledger.record_fact("aws-run", uuid.uuid4().hex))

    def rent(self, count: int, watch: Callable[[], None]) -> list[str]:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`.

        Raises:
            UnfoldError: The price is implausible, AWS refused, or an instance did not start.
        """
        if count <= 0:
            return []
        reason = find_implausibility(self.request.machine.usd_per_hour)
        if reason:
            raise user_error(f"nothing is rented: {reason}", key="cloud.instances", hint="unfold catalog shows prices")
        token = f"{self.run_id}-{len(self.ledger.list_orders())}"
        self.ledger.record_order(token, count, self.wall())
        try:
            names = self._request_instances(token, count)
            self._wait_until_running(names, watch)
        except BaseException:
            # these instances are in no other record, and cost money from now on
            self._terminate(list(self._list_alive(ORDER_TAG, token)))
            raise
        return names

    def release(self, name: str) -> None:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`."""
        self._terminate([name])

    def recover(self) -> None:
        """Terminate what an earlier attempt left; an instance missing from the ledger is billed from its launch."""
        recorded = {lifetime.id for lifetime in self.ledger.list_lifetimes()}
        for instance in describe_instances(self.ec2, [{"Name": f"tag:{RUN_TAG}", "Values": [self.run_id]}]):
            name = instance["InstanceId"]
            if name not in recorded:
                launched_at = instance["LaunchTime"].timestamp()
                self.ledger.record_node_start(name, self.request.machine.usd_per_hour, launched_at)
            terminated_at = parse_termination_time(instance)
            if terminated_at is not None:
                self.ledger.record_node_end(name, terminated_at)
            elif instance["State"]["Name"] not in ENDED_STATES:
                self._terminate([name])

    def close(self) -> None:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`.

        Raises:
            UnfoldError: An instance may still run; the message names it.
        """
        self._terminate(list(self._list_alive(RUN_TAG, self.run_id)))

    def _request_instances(self, token: str, count: int) -> list[str]:
        from botocore.exceptions import ClientError, HTTPClientError

        names: list[str] = []
        for attempt in range(MAX_ATTEMPTS):
            try:
                response = self.ec2.run_instances(**self._build_parameters(token, count))
                names = [instance["InstanceId"] for instance in response["Instances"]]
                break
            except ClientError as error:
                hint = "another type or region, or a quota: aws service-quotas list-service-quotas --service-code ec2"
                raise user_error(f"AWS refused {count} x {self.request.machine.name}: {error}", hint=hint) from error
            except HTTPClientError as error:
                # the response is lost, but the instances may exist
                names = list(self._list_alive(ORDER_TAG, token))
                if names:
                    break
                if attempt == MAX_ATTEMPTS - 1:
                    raise user_error(f"AWS does not respond: {error}") from error
        return self._terminate_surplus(token, count, names)

    def _terminate_surplus(self, token: str, count: int, names: list[str]) -> list[str]:
        names = [*names, *(name for name in self._list_alive(ORDER_TAG, token) if name not in names)]
        surplus = names[count:]
        if surplus:
            self.log.warning("AWS started %d instances too many; they are terminated", len(surplus))
            self._terminate(surplus)
        return names[:count]

    def _wait_until_running(self, names: Sequence[str], watch: Callable[[], None]) -> None:
        waiting, began = set(names), self.wall()
        while waiting:
            # by filter: a query by id may fail for an instance that is a second old
            for instance in describe_instances(self.ec2, [{"Name": "instance-id", "Values": sorted(waiting)}]):
                if self._record_if_running(instance):
                    waiting.discard(instance["InstanceId"])
            if waiting and self.wall() - began > START_TIMEOUT_S:
                raise user_error(f"{len(waiting)} instances are still pending after {START_TIMEOUT_S:g} s", key="cloud")
            watch()
            if waiting:
                time.sleep(self.poll_s)

    def _record_if_running(self, instance: Any) -> bool:
        state = instance["State"]["Name"]
        if state in ENDED_STATES:
            reason = instance.get("StateReason", {}).get("Message", "no reason given")
            hint = "another type, region or market"
            raise user_error(f"{instance['InstanceId']} ended before it ran: {reason}", hint=hint)
        if state != "running":
            return False
        self.ledger.record_node_start(instance["InstanceId"], self.request.machine.usd_per_hour, self.wall())
        return True

    def _terminate(self, names: Sequence[str]) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        for attempt in range(MAX_ATTEMPTS if names else 0):
            try:
                terminated = self.ec2.terminate_instances(InstanceIds=list(names))["TerminatingInstances"]
            except (BotoCoreError, ClientError) as error:
                self.log.warning("terminating %s: %s", " ".join(names), error)
                time.sleep(self.poll_s * attempt)
                continue
            for instance in terminated:
                self.ledger.record_node_end(instance["InstanceId"], self.wall())
            return
        if names:
            hint = f"aws ec2 terminate-instances --instance-ids {' '.join(names)}; unfold doctor also lists them"
            raise internal_error(f"{', '.join(names)} may still run and cost money", hint=hint)

    def _list_alive(self, tag: str, value: str) -> Iterator[str]:
        filters = [
            {"Name": f"tag:{tag}", "Values": [value]},
            {"Name": "instance-state-name", "Values": list(ALIVE_STATES)},
        ]
        yield from (instance["InstanceId"] for instance in describe_instances(self.ec2, filters))

    def _build_parameters(self, token: str, count: int) -> dict[str, Any]:
        launch, machine = self.request.launch, self.request.machine
        optional = {
            "SubnetId": launch.subnet,
            "SecurityGroupIds": list(launch.security_groups) or None,
            "IamInstanceProfile": {"Name": launch.role} if launch.role else None,
            "InstanceMarketOptions": _build_spot_options() if machine.market == "spot" else None,
        }
        return {
            "ImageId": launch.image,
            "InstanceType": machine.name,
            "MinCount": count,
            "MaxCount": count,
            "ClientToken": token,
            "UserData": build_user_data(self.request, self.wall()),
            "InstanceInitiatedShutdownBehavior": "terminate",
            "TagSpecifications": [{"ResourceType": "instance", "Tags": self._build_tags(token)}],
            **{key: value for key, value in optional.items() if value is not None},
        }

    def _build_tags(self, token: str) -> list[dict[str, str]]:
        expires = dt.datetime.fromtimestamp(self.request.expires_at, dt.UTC).isoformat(timespec="seconds")
        tags = {
            "Name": "unfold",
            RUN_TAG: self.run_id,
            ORDER_TAG: token,
            FOLDER_TAG: self.request.folder,
            EXPIRES_TAG: expires,
        }
        return [{"Key": key, "Value": value[:MAX_TAG_LENGTH]} for key, value in tags.items()]


def describe_instances(ec2: Any, filters: Iterable[dict[str, Any]]) -> Iterator[Any]:
    """Yield the instances that match all filters, page by page."""
    for page in ec2.get_paginator("describe_instances").paginate(Filters=list(filters)):
        for reservation in page["Reservations"]:
            yield from reservation["Instances"]


def parse_termination_time(instance: Any) -> float | None:
    """Parse when an instance was terminated, in seconds of the wall clock, if AWS reports it.

    AWS reports it within a sentence: ``User initiated (2026-11-24 21:00:00 GMT)``.
    """
    reason = instance.get("StateTransitionReason", "")
    match = re.search(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)", reason)
    if instance["State"]["Name"] not in ENDED_STATES or match is None:
        return None
    return dt.datetime.fromisoformat(match[1]).replace(tzinfo=dt.UTC).timestamp()


def build_user_data(request: LaunchRequest, now: float) -> str:
    """Build the script of a new instance: its scheduled shutdown, the user's setup, and a raylet of its name."""
    minutes = max(1, round((request.expires_at - now) / 60))
    metadata = "http://169.254.169.254/latest"
    resources = f'"{{\\"unfold-$ID\\": {request.machine.accelerators}}}"'
    lines = [
        "#!/bin/sh",
        # a driver that is lost with its machine cannot terminate anything
        f"shutdown -h +{minutes}",
        request.launch.setup,
        f"TOKEN=$(curl -sX PUT {metadata}/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: 600')",
        f'ID=$(curl -s -H "X-aws-ec2-metadata-token: $TOKEN" {metadata}/meta-data/instance-id)',
        f"ray start --address={request.head_address} --disable-usage-stats --resources={resources}",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def make_ec2_client(region: str) -> Any:
    """Make an EC2 client with the caller's credentials that retries queries a few times."""
    import boto3
    from botocore.config import Config

    config = Config(retries={"mode": "standard", "max_attempts": 4}, connect_timeout=10, read_timeout=60)
    return boto3.client("ec2", region_name=region, config=config)


def _build_spot_options() -> dict[str, Any]:
    options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
    return {"MarketType": "spot", "SpotOptions": options}
