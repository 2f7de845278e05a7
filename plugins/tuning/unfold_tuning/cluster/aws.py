"""EC2 instances through boto3: requested once, tagged, and terminated at the end and after a crash.

A request that is refused, throttled or only partly granted moves on to the next offer; see
:mod:`unfold_tuning.cluster.offers`.

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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from unfold_tuning.cluster.offers import (
    ACCESS_CODES,
    QUOTA_CODES,
    Offer,
    OfferBook,
    Refusal,
    describe_shortfall,
    fill_from_offers,
    require_plausible_price,
)
from unfold_tuning.job.problem import LaunchConfig
from unfold_tuning.job.profile import Machine
from unfold_tuning.trial.ledger import Ledger
from unfoldkit.api import UnfoldError, user_error

RUN_TAG = "unfold-run"
ORDER_TAG = "unfold-order"
FOLDER_TAG = "unfold-folder"
EXPIRES_TAG = "unfold-expires"
ALIVE_STATES = ("pending", "running", "stopping", "stopped")
ENDED_STATES = ("shutting-down", "terminated")
MAX_TAG_LENGTH = 256
POLL_S = 1.0
MAX_ATTEMPTS = 5
MAX_TERMINATIONS = 8
MAX_LOOKUPS = 10
MAX_UNKNOWN = 5
"""An instance is unknown for some seconds after its launch, and again an hour after its end."""
MAX_RELEASES = MAX_UNKNOWN
"""While a run goes on, its deadline and its cap wait for a release; what stays is terminated with the next one."""
START_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRequest:
    """What to launch.

    Attributes:
        machine: The instance type.
        launch: How it is launched.
        head_address: Address of the driver's Ray head.
        folder: Folder of the run.
        expires_at: Wall time at which a forgotten instance shuts itself down.
        offers: What to try in order; only the machine, in any zone, if empty.
    """

    machine: Machine
    launch: LaunchConfig
    head_address: str
    folder: str
    expires_at: float
    offers: tuple[Offer, ...] = ()

    def open_book(self) -> OfferBook:
        """Open the book of the offers; a thrifty plan tries spot instances alone at first."""
        return OfferBook(self.offers or (Offer(self.machine),), self.machine.spot is None)


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
        sleep: Waits for some seconds.
        book: The offers and which of them may be tried.
        granted: The offer of each instance that was started.
        unreleased: Nodes that should have ended, but could not be terminated yet.
        log: Receives warnings.
    """

    ec2: Any
    request: LaunchRequest
    region: str
    ledger: Ledger
    wall: Callable[[], float] = time.time
    poll_s: float = POLL_S
    sleep: Callable[[float], None] = time.sleep
    book: OfferBook = field(init=False)
    granted: dict[str, Offer] = field(default_factory=dict)
    unreleased: list[str] = field(default_factory=list)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("unfoldkit"))

    @property
    def run_id(self) -> str:
        """The tag by which the run's instances are found, the same after a crash; recorded with the region."""
        self.ledger.record_fact("aws-region", self.region)
        return str(self.ledger.record_fact("aws-run", uuid.uuid4().hex))

    def __post_init__(self) -> None:
        """Open the book of offers."""
        self.book = self.request.open_book()

    def allow_on_demand(self) -> None:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`."""
        self.book.is_on_demand_allowed = True

    def can_rent(self) -> bool:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`."""
        return self.book.select(self.wall()) is not None

    def rent(self, count: int, watch: Callable[[], None], *, is_required: bool = True) -> list[str]:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`.

        Raises:
            UnfoldError: The price is implausible, or no node is held and every offer has ended for the run.
        """

        def wait() -> None:
            self._require_hope()
            watch()
            self.sleep(self.poll_s)

        return fill_from_offers(
            self.book,
            count,
            lambda offer, missing: self._rent_from(offer, missing, watch),
            self._terminate,
            self.wall,
            wait if is_required else None,
        )

    def _require_hope(self) -> None:
        """Require that some offer may still be granted before the run expires."""
        if not self.book.has_any():
            hint = "check cloud.launch, cloud.zones and what the credentials permit; the log has the response of AWS"
            if not self.book.group_ended().keys().isdisjoint(QUOTA_CODES):
                hint = "name other types, zones or markets, or raise a quota: unfold catalog, aws service-quotas"
            reasons = self.book.describe_ended()
            raise user_error(f"AWS refused every offer: {reasons}", key="cloud.instances", hint=hint)
        if self.wall() > self.request.expires_at:
            hint = "the same command continues the run"
            raise user_error("AWS had no capacity until the run expired", key="cloud.instances", hint=hint)

    def _rent_from(self, offer: Offer, count: int, watch: Callable[[], None]) -> list[str]:
        """Rent from one offer; fewer instances, or none, if it is refused or they do not start."""
        require_plausible_price(offer)
        names, refusal = self._order(offer, count, count, watch)
        if count > 1 and not names and refusal and refusal.kind != "configuration":
            # as many as there are: with an equal minimum the whole request is refused
            names, refusal = self._order(offer, count, 1, watch)
        self.ledger.record_capacity(offer.name, bool(names), self.wall())
        if names:
            self.book.record_grant(offer)
            self.granted |= dict.fromkeys(names, offer)
        if len(names) < count:
            # the rest is requested from the next offer
            now, end_code = self.wall(), refusal.code if refusal and refusal.kind != "capacity" else ""
            self.book.record_refusal(offer, now, end_code=end_code)
            self.log.warning("%s", describe_shortfall(self.book, offer, len(names), count, now, refusal))
        return names

    def _order(
        self, offer: Offer, count: int, min_count: int, watch: Callable[[], None]
    ) -> tuple[list[str], Refusal | None]:
        """Order instances and return those that run, and why AWS refused, if it did."""
        token = f"{self.run_id}-{len(self.ledger.list_orders())}"
        self.ledger.record_order(token, count, self.wall())
        requested: list[str] | None = None
        try:
            requested, refusal = self._request_instances(offer, token, count, min_count, watch)
            return self._wait_until_running(offer, requested, watch), refusal
        except BaseException as error:
            # these instances are in no other record, and cost money from now on
            is_unanswered = requested is None and not isinstance(error, Exception)
            self._terminate(self._await_ordered(token) if is_unanswered else self._find_ordered(token))
            raise

    def find_ended(self, names: Collection[str]) -> set[str]:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`; their offers rest, as if they had been refused."""
        filters = [
            {"Name": "instance-id", "Values": sorted(names)},
            {"Name": "instance-state-name", "Values": list(ENDED_STATES)},
        ]
        try:
            ended = {instance["InstanceId"] for instance in describe_instances(self.ec2, filters)}
        except list_request_errors() as error:
            self.log.warning("the state of new instances cannot be queried: %s", describe_error(error))
            return set()
        now = self.wall()
        for offer in dict.fromkeys(self.granted.pop(name) for name in sorted(ended) if name in self.granted):
            self.ledger.record_capacity(offer.name, granted=False, now=now)
            self.book.record_refusal(offer, now)
            self.log.warning("%s: lost while it booted; next: %s", offer.name, self.book.describe_next(now))
        return ended

    def release(self, name: str) -> None:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`; what stays is released with the next one."""
        names, self.unreleased = [*self.unreleased, name], []
        try:
            self._terminate(names, MAX_RELEASES)
        except UnfoldError as error:
            self.unreleased = names
            self.log.warning("%s", error)

    def recover(self) -> None:
        """Terminate what an earlier attempt left; an instance missing from the ledger is billed from its launch."""
        for instance in self._describe_run():
            self._record_launch(instance)
            terminated_at = parse_termination_time(instance)
            if terminated_at is not None:
                self.ledger.record_node_end(instance["InstanceId"], terminated_at)
            elif instance["State"]["Name"] not in ENDED_STATES:
                self._terminate([instance["InstanceId"]])

    def _record_launch(self, instance: Any) -> None:
        """Record an instance that the ledger does not know: the response to its order was lost."""
        if instance["InstanceId"] not in {lifetime.id for lifetime in self.ledger.list_lifetimes()}:
            launched_at = instance["LaunchTime"].timestamp()
            self.ledger.record_node_start(instance["InstanceId"], self.request.machine.usd_per_hour, launched_at)

    def _describe_run(self) -> list[Any]:
        """Describe every instance of the run, with some patience; with little if it has not ordered any."""
        has_ordered = bool(self.ledger.list_orders())
        for attempt in range(MAX_TERMINATIONS if has_ordered else MAX_ATTEMPTS):
            try:
                return list(describe_instances(self.ec2, [{"Name": f"tag:{RUN_TAG}", "Values": [self.run_id]}]))
            except list_request_errors() as error:
                if is_access_error(error):
                    hint = (
                        "aws sts get-caller-identity shows the credentials in use; the same command continues the run"
                    )
                    raise user_error(
                        f"AWS grants no access: {describe_error(error)}", key="cloud.provider", hint=hint
                    ) from error
                self.log.warning("the instances of the run cannot be listed: %s", describe_error(error))
                self.sleep(self.poll_s * 2**attempt)
        if not has_ordered:
            hint = "check the network, cloud.region and AWS_ENDPOINT_URL; nothing is rented"
            raise user_error("AWS does not respond; the log has its errors", key="cloud.provider", hint=hint)
        hint = "wait until AWS responds, then run the same command again"
        message = "the instances that an earlier attempt left cannot be listed"
        raise user_error(message, key="cloud.provider", hint=hint)

    def close(self) -> None:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`.

        Raises:
            UnfoldError: An instance may still run; the message names it.
        """
        for attempt in range(MAX_TERMINATIONS):
            try:
                instances = list(self._describe_alive(RUN_TAG, self.run_id))
            except list_request_errors() as error:
                self.log.warning("the instances of the run cannot be listed: %s", describe_error(error))
                if is_access_error(error):
                    break
                self.sleep(self.poll_s * 2**attempt)
                continue
            for instance in instances:
                self._record_launch(instance)
            self._terminate([instance["InstanceId"] for instance in instances])
            return
        left = [lifetime.id for lifetime in self.ledger.list_lifetimes() if lifetime.until is None]
        raise build_leftover_error(left or ["instances of this run"], "the same command terminates them")

    def _request_instances(
        self, offer: Offer, token: str, count: int, min_count: int, watch: Callable[[], None]
    ) -> tuple[list[str], Refusal | None]:
        """Request instances with one token, and the same parameters however often.

        Returns:
            The instances, and the refusal if there are none.
        """
        from botocore.exceptions import ClientError

        parameters = self._build_parameters(offer, token, count, min_count)
        names: list[str] = []
        for attempt in range(MAX_ATTEMPTS):
            try:
                response = self.ec2.run_instances(**parameters)
                names = [instance["InstanceId"] for instance in response["Instances"]]
                break
            except ClientError as error:
                refusal = read_refusal(error)
                if refusal.kind != "throttled":
                    # the client repeats lost requests itself, and only the last response is known here
                    is_repeated = attempt or error.response.get("ResponseMetadata", {}).get("RetryAttempts")
                    return (self._terminate_surplus(token, count, []) if is_repeated else []), refusal
                self.log.warning("%s: %s, attempt %d of %d", offer.name, refusal, attempt + 1, MAX_ATTEMPTS)
            except list_request_errors() as error:
                # the response is lost, but the instances may exist
                self.log.warning("AWS does not respond: %s", describe_error(error))
                names = self._find_ordered(token)
                if names:
                    break
            self._pause(attempt, watch)
        # even after the last attempt: a lost response may have been a granted one
        return self._terminate_surplus(token, count, names or self._find_ordered(token)), None

    def _pause(self, attempt: int, watch: Callable[[], None]) -> None:
        """Wait before another attempt, longer each time, while the run is watched."""
        for _ in range(2**attempt):
            watch()
            self.sleep(self.poll_s)

    def _find_ordered(self, token: str) -> list[str]:
        """Find the instances of an order by their tag; none if AWS does not respond."""
        try:
            return list(self._list_alive(ORDER_TAG, token))
        except list_request_errors() as error:
            self.log.warning("the order %s cannot be looked up: %s", token, describe_error(error))
            return []

    def _await_ordered(self, token: str) -> list[str]:
        """Find the instances of an order that was interrupted before its answer: they may start seconds later."""
        for _ in range(MAX_LOOKUPS):
            if names := self._find_ordered(token):
                return names
            self.sleep(self.poll_s)
        return []

    def _terminate_surplus(self, token: str, count: int, names: list[str]) -> list[str]:
        names = [*names, *(name for name in self._find_ordered(token) if name not in names)]
        surplus = names[count:]
        if surplus:
            self.log.warning("AWS started more than ordered: %s terminated", " ".join(surplus))
            self._terminate(surplus)
        return names[:count]

    def _wait_until_running(self, offer: Offer, names: Sequence[str], watch: Callable[[], None]) -> list[str]:
        """Wait for instances and return those that run; one that ends or stays pending is given up."""
        waiting, running, began = set(names), set[str](), self.wall()
        while waiting:
            try:
                # by filter: a query by id may fail for an instance that is a second old
                filters = [{"Name": "instance-id", "Values": sorted(waiting)}]
                for instance in describe_instances(self.ec2, filters):
                    name, state = instance["InstanceId"], instance["State"]["Name"]
                    if state in ENDED_STATES:
                        reason = instance.get("StateReason", {}).get("Message", "no reason given")
                        self.log.warning("%s ended before it ran: %s", name, reason)
                        waiting.discard(name)
                    elif state == "running":
                        self.ledger.record_node_start(name, offer.machine.usd_per_hour, self.wall())
                        running.add(name)
                        waiting.discard(name)
            except list_request_errors() as error:
                self.log.warning("the state of new instances cannot be queried: %s", describe_error(error))
            if waiting and self.wall() - began > START_TIMEOUT_S:
                self.log.warning("%d instances are still pending after %g s", len(waiting), START_TIMEOUT_S)
                self._terminate(sorted(waiting))
                break
            watch()
            if waiting:
                self.sleep(self.poll_s)
        return [name for name in names if name in running]

    def _terminate(self, names: Sequence[str], attempts: int = MAX_TERMINATIONS) -> None:
        for attempt in range(attempts if names else 0):
            try:
                terminated = self.ec2.terminate_instances(InstanceIds=list(names))["TerminatingInstances"]
            except list_request_errors() as error:
                if _is_unknown_instance(error) and len(names) > 1:
                    # one that is unknown keeps all of a request from being terminated
                    for name in names:
                        self._terminate([name], attempts)
                    return
                if _is_unknown_instance(error) and attempt + 1 >= MAX_UNKNOWN:
                    self.ledger.record_node_end(names[0], self.wall())
                    return
                self.log.warning("cannot terminate %s: %s", " ".join(names), describe_error(error))
                if is_access_error(error) or attempt + 1 == attempts:
                    break
                self.sleep(self.poll_s * 2**attempt)
                continue
            for instance in terminated:
                self.ledger.record_node_end(instance["InstanceId"], self.wall())
            return
        if names:
            raise build_leftover_error(names, f"aws ec2 terminate-instances --instance-ids {' '.join(names)}")

    def _list_alive(self, tag: str, value: str) -> Iterator[str]:
        yield from (instance["InstanceId"] for instance in self._describe_alive(tag, value))

    def _describe_alive(self, tag: str, value: str) -> Iterator[Any]:
        filters = [
            {"Name": f"tag:{tag}", "Values": [value]},
            {"Name": "instance-state-name", "Values": list(ALIVE_STATES)},
        ]
        yield from describe_instances(self.ec2, filters)

    def _build_parameters(self, offer: Offer, token: str, count: int, min_count: int) -> dict[str, Any]:
        launch, machine = self.request.launch, offer.machine
        optional = {
            "SubnetId": launch.subnet,
            "SecurityGroupIds": list(launch.security_groups) or None,
            "IamInstanceProfile": {"Name": launch.role} if launch.role else None,
            "Placement": {"AvailabilityZone": offer.zone} if offer.zone else None,
            "InstanceMarketOptions": _build_spot_options() if machine.market == "spot" else None,
        }
        return {
            "ImageId": launch.image,
            "InstanceType": machine.name,
            "MinCount": min_count,
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


def build_leftover_error(names: Sequence[str], hint: str) -> UnfoldError:
    """Build the error of instances that could not be terminated: AWS refuses, so that the user has to act."""
    message = f"{', '.join(names)} may still run and cost money"
    return user_error(message, key="cloud.provider", hint=f"{hint}; unfold doctor lists what a run has left")


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
    """Make an EC2 client with the caller's credentials that retries queries a few times.

    Raises:
        UnfoldError: The user's AWS configuration cannot be used, such as a profile that does not exist.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(retries={"mode": "standard", "max_attempts": 4}, connect_timeout=10, read_timeout=60)
    try:
        return boto3.client("ec2", region_name=region, config=config)
    except BotoCoreError as error:
        hint = "aws configure list shows the settings in use"
        raise user_error(f"AWS cannot be reached: {error}", key="cloud.provider", hint=hint) from error


def list_request_errors() -> tuple[type[Exception], ...]:
    """List what a request to AWS raises: it is refused, lost, or answered with something else, as by a proxy."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    return BotoCoreError, ClientError, ResponseParserError, KeyError


def read_refusal(error: Any) -> Refusal:
    """Read why AWS refused a request from boto3's ``ClientError``."""
    details = error.response.get("Error", {})
    return Refusal(str(details.get("Code", "unknown")), str(details.get("Message", "")))


def describe_error(error: Exception) -> str:
    """Describe what a request raised: why AWS refused it, without boto3's frame, or why there was no answer."""
    from botocore.exceptions import ClientError

    return str(read_refusal(error)) if isinstance(error, ClientError) else str(error)


def is_access_error(error: Exception) -> bool:
    """Return whether credentials are missing, have expired or permit too little, so that waiting does not help."""
    from botocore import exceptions

    missing = (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
        exceptions.TokenRetrievalError,
        exceptions.SSOError,
    )
    if isinstance(error, exceptions.ClientError):
        return error.response["Error"]["Code"] in ACCESS_CODES
    return isinstance(error, missing)


def _is_unknown_instance(error: Exception) -> bool:
    from botocore.exceptions import ClientError

    return isinstance(error, ClientError) and error.response["Error"]["Code"] == "InvalidInstanceID.NotFound"


def _build_spot_options() -> dict[str, Any]:
    options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
    return {"MarketType": "spot", "SpotOptions": options}
