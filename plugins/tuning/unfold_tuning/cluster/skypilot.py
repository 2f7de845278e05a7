"""Instances of any cloud through SkyPilot: each is a cluster of one node with a name of the run.

SkyPilot starts and ends instances, and the nodes join the Ray head of the driver, as those of AWS do. A request goes to
SkyPilot's API server, which carries it out whatever becomes of the driver. Therefore the ledger holds the name before
it is sent, and the next attempt cancels requests and ends clusters by their names. The job of a cluster ends after the
deadline and its grace; SkyPilot ends a cluster some minutes after its job.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from unfold_tuning.cluster.aws import LaunchRequest
from unfold_tuning.cluster.offers import (
    Offer,
    OfferBook,
    describe_shortfall,
    fill_from_offers,
    require_plausible_price,
)
from unfold_tuning.cluster.ray_nodes import name_node_resource
from unfold_tuning.trial.ledger import Ledger
from unfoldkit.api import user_error

IDLE_MINUTES = 5
START_TIMEOUT_S = 1200.0
END_TIMEOUT_S = 300.0
POLL_S = 0.5
INFEASIBLE = "NoSuchInstance"
REFUSALS = frozenset(
    {
        INFEASIBLE,
        "InvalidCloudConfigs",
        "InvalidCloudCredentials",
        "NoCloudAccessError",
        "NotSupportedError",
        "PermissionDeniedError",
        "UserRequestRejectedByPolicy",
        "ValueError",
    }
)
"""Errors that end an offer for the run."""
UNAVAILABLE = frozenset(
    {
        "ApiServerConnectionError",
        "KubeAPIUnreachableError",
        "ResourcesUnavailableError",
        "ServerTemporarilyUnavailableError",
    }
)
"""Errors after which a request may succeed later; any other, such as a failed setup, may do so twice."""
MAX_FAILURES = 3
GONE = "ClusterDoesNotExist"
RUN_FACT = "skypilot-run"
"""The fact of the ledger by which a run finds its clusters."""


@dataclass(frozen=True, slots=True)
class SkyResult:
    """How a request ended: the name of SkyPilot's error, empty if there was none, and its text."""

    error: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class SkyCluster:
    """A cluster, the wall time of its launch, and that of its end, if it has ended."""

    name: str
    launched_at: float
    ended_at: float | None = None


class SkyClient(Protocol):
    """What the provider needs of SkyPilot; every method raises :class:`SkyRequestError`."""

    def launch(self, name: str, infra: str, offer: Offer, image: str | None, script: str) -> str:
        """Request a cluster that runs a script, and return the id of the request."""

    def down(self, name: str) -> str:
        """Request the end of a cluster, and return the id of the request."""

    def poll(self, request: str) -> SkyResult | None:
        """Return how a request ended; ``None`` if it goes on."""

    def cancel_launches(self, prefix: str) -> None:
        """Cancel the launches of clusters with this prefix that go on."""

    def list_clusters(self, prefix: str) -> list[SkyCluster]:
        """List the clusters with this prefix, and those that have ended."""


class SkyRequestError(Exception):
    """A request that SkyPilot does not take; ``result`` is why."""

    def __init__(self, result: SkyResult) -> None:
        super().__init__(f"{result.error}: {result.text}")
        self.result = result


@dataclass(slots=True)
class SkyPilotProvider:
    """The clusters of one run; see :class:`~unfold_tuning.cluster.provider.NodeProvider`.

    Attributes:
        client: SkyPilot.
        request: What to launch.
        infra: Where, in SkyPilot's notation.
        ledger: The ledger of the run.
        wall: The wall clock.
        sleep: Waits for some seconds.
        book: The offers and which of them may be tried.
        ending: The clusters that are being ended, each with its request, ``None`` if it has yet to be sent.
        log: Receives warnings.
    """

    client: SkyClient
    request: LaunchRequest
    infra: str
    ledger: Ledger
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    book: OfferBook = field(init=False)
    ending: dict[str, str | None] = field(default_factory=dict)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("unfoldkit"))

    def __post_init__(self) -> None:
        """Open the book of offers."""
        self.book = self.request.open_book()

    @property
    def prefix(self) -> str:
        """How the names of the run's clusters begin, the same after a crash."""
        return name_prefix(str(self.ledger.record_fact(RUN_FACT, uuid.uuid4().hex[:8])))

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
        self._continue_ending()

        def wait() -> None:
            self._require_hope()
            watch()
            self.sleep(POLL_S)

        return fill_from_offers(
            self.book,
            count,
            lambda offer, missing: self._rent_from(offer, missing, watch),
            self._end,
            self.wall,
            wait if is_required else None,
        )

    def _require_hope(self) -> None:
        """Require that some offer may still be granted before the run expires."""
        hint = "sky check shows which clouds are enabled, sky gpus list what they have; the log has SkyPilot's messages"
        if not self.book.has_any():
            message = f"SkyPilot refused every offer: {self.book.describe_ended()}"
            raise user_error(message, key="cloud.instances", hint=hint)
        if self.wall() > self.request.expires_at:
            message = "SkyPilot found no capacity until the run expired"
            raise user_error(message, key="cloud.instances", hint="the same command continues the run")

    def _rent_from(self, offer: Offer, count: int, watch: Callable[[], None]) -> list[str]:
        """Rent from one offer; fewer nodes, or none, if it is refused or they do not start."""
        require_plausible_price(offer)
        ordered: dict[str, float] = {}
        try:
            names, refusals = self._order(offer, count, ordered, watch)
        except BaseException:
            self._bill_leftovers(ordered, offer)
            self._end(ordered)
            raise
        failed = ordered.keys() - names
        if failed:
            # a launch that failed late leaves its instance to be looked at
            self._end(self._bill_leftovers(failed, offer))
        self.ledger.record_capacity(offer.name, bool(names), self.wall())
        if names:
            self.book.record_grant(offer)
        if len(names) < count:
            ending = REFUSALS if self.book.count_refusals(offer) + 1 < MAX_FAILURES else set(refusals) - UNAVAILABLE
            end_code = next((error for error in refusals if error in ending | REFUSALS), "")
            now = self.wall()
            self.book.record_refusal(offer, now, end_code=end_code)
            self.log.warning("%s", describe_shortfall(self.book, offer, len(names), count, now))
        return names

    def _order(
        self, offer: Offer, count: int, ordered: dict[str, float], watch: Callable[[], None]
    ) -> tuple[list[str], list[str]]:
        """Order clusters side by side, and return those that run, and the errors of the others."""
        names: list[str] = []
        refusals: list[str] = []
        waiting: dict[str, str] = {}
        for _ in range(count):
            name = f"{self.prefix}{len(self.ledger.list_orders())}"
            ordered[name] = self.wall()
            self.ledger.record_order(name, 1, ordered[name])
            script = build_script(self.request, name, self.wall())
            try:
                waiting[name] = self.client.launch(name, self.infra, offer, self.request.launch.image, script)
            except SkyRequestError as error:
                refusals.append(self._log_refusal(name, offer, error.result))
                break
            watch()
        while waiting and self.wall() - max(ordered.values()) < START_TIMEOUT_S:
            for name, request in list(waiting.items()):
                result = self._poll(request)
                if result is None:
                    continue
                del waiting[name]
                if result.error:
                    refusals.append(self._log_refusal(name, offer, result))
                else:
                    # SkyPilot reports when a node is set up; it is billed from the start
                    self.ledger.record_node_start(name, offer.machine.usd_per_hour, ordered[name])
                    names.append(name)
            watch()
            self.sleep(POLL_S)
        return names, refusals

    def _poll(self, request: str) -> SkyResult | None:
        """Return how a request ended; ``None`` if it goes on or SkyPilot does not respond."""
        try:
            return self.client.poll(request)
        except SkyRequestError as error:
            self.log.warning("SkyPilot does not respond: %s", error)
            return None

    def _log_refusal(self, name: str, offer: Offer, result: SkyResult) -> str:
        self.log.warning("SkyPilot did not start %s, %s: %s: %s", name, offer.name, result.error, result.text)
        return result.error

    def _bill_leftovers(self, names: Iterable[str], offer: Offer) -> list[str]:
        """Bill clusters that exist although their launch failed or was interrupted, and return all that may exist."""
        names, recorded = list(names), {lifetime.id for lifetime in self.ledger.list_lifetimes()}
        try:
            self.client.cancel_launches(self.prefix)
            existing = [cluster for cluster in self.client.list_clusters(self.prefix) if cluster.ended_at is None]
        except SkyRequestError as error:
            self.log.warning("the clusters of the run cannot be listed: %s", error)
            return names
        for cluster in existing:
            if cluster.name in names and cluster.name not in recorded:
                self.ledger.record_node_start(cluster.name, offer.machine.usd_per_hour, cluster.launched_at)
        return [cluster.name for cluster in existing if cluster.name in names]

    def find_ended(self, names: Collection[str]) -> set[str]:  # noqa: ARG002 - nothing is known
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`: SkyPilot lists lost clusters as running."""
        return set()

    def release(self, name: str) -> None:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`; what stays is released with the next one."""
        self._end([name])

    def _end(self, names: Iterable[str]) -> None:
        self.ending |= dict.fromkeys(names)
        self._continue_ending()

    def _continue_ending(self) -> None:
        """Send requests to end clusters, and again those that failed; a bill ends when SkyPilot takes the request."""
        for name, request in list(self.ending.items()):
            try:
                if request is None:
                    self.ending[name] = self.client.down(name)
                    self.ledger.record_node_end(name, self.wall())
                    continue
                result = self.client.poll(request)
            except SkyRequestError as error:
                result = error.result
            if result is None:
                continue
            if result.error in ("", GONE):
                self.ledger.record_node_end(name, self.wall())
                del self.ending[name]
            else:
                self.log.warning("SkyPilot has not ended %s: %s: %s", name, result.error, result.text)
                self.ending[name] = None

    def _wait_for_ends(self) -> None:
        began = self.wall()
        while self.ending and self.wall() - began < END_TIMEOUT_S:
            self.sleep(POLL_S)
            self._continue_ending()

    def recover(self) -> None:
        """End what an earlier attempt left; a cluster that is missing from the ledger is billed from its launch."""
        recorded = {lifetime.id for lifetime in self.ledger.list_lifetimes()}
        try:
            self.client.cancel_launches(self.prefix)
            clusters = self.client.list_clusters(self.prefix)
        except SkyRequestError as error:
            hint = "sky api info, sky check; the same command continues the run"
            raise user_error(f"SkyPilot does not respond: {error}", key="cloud.provider", hint=hint) from error
        for cluster in clusters:
            if cluster.name not in recorded:
                self.ledger.record_node_start(cluster.name, self.request.machine.usd_per_hour, cluster.launched_at)
            if cluster.ended_at is not None:
                self.ledger.record_node_end(cluster.name, cluster.ended_at)
        self._end(cluster.name for cluster in clusters if cluster.ended_at is None)
        # until then they count against quotas
        self._wait_for_ends()

    def close(self) -> None:
        """See :class:`~unfold_tuning.cluster.provider.NodeProvider`.

        Raises:
            UnfoldError: An instance may still run; the message names its cluster.
        """
        self._end(lifetime.id for lifetime in self.ledger.list_lifetimes() if lifetime.until is None)
        self._wait_for_ends()
        if self.ending:
            names = " ".join(self.ending)
            hint = f"sky down {names}; the same command ends it, too"
            raise user_error(f"{names} may still run and cost money", key="cloud.provider", hint=hint)


def name_prefix(run: str) -> str:
    """Name the prefix of the clusters of a run, which its ledger numbers."""
    return f"unfold-{run}-"


def build_script(request: LaunchRequest, name: str, now: float) -> str:
    """Build the job of a cluster: the user's setup, and a raylet of its name until the run expires."""
    seconds = max(60, round(request.expires_at - now))
    resources = json.dumps({name_node_resource(name): float(request.machine.accelerators)})
    start = f"ray start --address={request.head_address} --disable-usage-stats --block --resources='{resources}'"
    lines = [
        # a driver that is lost with its machine cannot end anything
        f"end=$(($(date +%s) + {seconds}))",
        # SkyPilot has a Ray of its own
        "for name in $(env | sed -n 's/^\\(RAY_[A-Za-z0-9_]*\\)=.*/\\1/p'); do unset $name; done",
        request.launch.setup,
        # a busy node may need a second attempt; a lost head fails all of them soon
        "for attempt in 1 2 3; do",
        "  left=$((end - $(date +%s)))",
        f"  [ $left -gt 0 ] && timeout $left {start}",
        "done",
    ]
    return "\n".join(line for line in lines if line) + "\n"


@dataclass(frozen=True, slots=True)
class InstalledSkyPilot:
    """SkyPilot's Python client; see :class:`SkyClient`."""

    def launch(self, name: str, infra: str, offer: Offer, image: str | None, script: str) -> str:
        """See :class:`SkyClient`."""
        machine = offer.machine
        with _using_sky() as sky:
            resources = sky.Resources(
                infra=join_zone(infra, offer.zone),
                instance_type=machine.name,
                use_spot=machine.market == "spot",
                image_id=image,
            )
            task = sky.Task(name="unfold", run=script)
            task.set_resources(resources)
            return str(sky.launch(task, cluster_name=name, idle_minutes_to_autostop=IDLE_MINUTES, down=True))

    def down(self, name: str) -> str:
        """See :class:`SkyClient`."""
        with _using_sky() as sky:
            return str(sky.down(name))

    def poll(self, request: str) -> SkyResult | None:
        """See :class:`SkyClient`."""
        with _using_sky() as sky:
            states = [item.status for item in sky.api_status([request], fields=["request_id", "status"])]
        if not {"SUCCEEDED", "FAILED", "CANCELLED"} & set(states):
            return None
        try:
            with _using_sky() as sky:
                sky.get(request)
        except SkyRequestError as error:
            return error.result
        return SkyResult()

    def cancel_launches(self, prefix: str) -> None:
        """See :class:`SkyClient`."""
        with _using_sky() as sky:
            requests = [
                item.request_id
                for item in sky.api_status()
                if item.name == "sky.launch" and (item.cluster_name or "").startswith(prefix)
            ]
            if requests:
                sky.get(sky.api_cancel(requests, silent=True))

    def list_clusters(self, prefix: str) -> list[SkyCluster]:
        """See :class:`SkyClient`."""
        with _using_sky() as sky:
            alive = {item["name"]: item for item in sky.get(sky.status())}
            known = {item["name"]: item for item in sky.get(sky.cost_report())} | alive
        return [
            SkyCluster(name, float(item["launched_at"]), None if name in alive else find_end(item))
            for name, item in known.items()
            if name.startswith(prefix)
        ]


def find_end(report: Any) -> float:
    """Find when a cluster ended in SkyPilot's cost report: at the end of its last interval of use."""
    intervals = report["usage_intervals"] or [(report["launched_at"], None)]
    return float(intervals[-1][1] or intervals[-1][0])


def join_zone(infra: str, zone: str | None) -> str:
    """Append a zone to a place in SkyPilot's notation, ``cloud/region/zone``, of which any part may be ``*``."""
    if zone is None:
        return infra
    cloud, region, *_ = [*infra.split("/"), "*"]
    return f"{cloud}/{region}/{zone}"


@contextlib.contextmanager
def _using_sky() -> Iterator[Any]:
    """Import SkyPilot, keep what it prints from stdout, and translate what it raises."""
    with contextlib.redirect_stdout(sys.stderr):
        import sky

        try:
            yield sky
        except Exception as error:  # its client raises what its server and its clouds raise
            lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [""]
            name, text = type(error).__name__, lines[0]
            if name == "ResourcesUnavailableError" and not error.failover_history:  # type: ignore[attr-defined]
                # nothing was tried, as no enabled cloud has it
                name = INFEASIBLE
            raise SkyRequestError(SkyResult(name, text)) from error
