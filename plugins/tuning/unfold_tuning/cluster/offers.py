"""Ordered offers of instances, and which of them may be tried now: a refusal moves on and never ends a run.

A refusal for lack of capacity puts an offer to sleep; a quota or a configuration error ends it for the run; throttling
only delays. The error codes are those of the EC2 API reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from unfold_tuning.job.profile import Machine
from unfoldkit.api import format_duration, format_names, user_error
from unfoldkit.catalog.instances import find_implausibility

RefusalKind = Literal["capacity", "quota", "throttled", "configuration"]
QUOTA_CODES = frozenset(
    {"VcpuLimitExceeded", "InstanceLimitExceeded", "MaxSpotInstanceCountExceeded", "MaxSpotFleetRequestCountExceeded"}
)
ACCESS_CODES = frozenset(
    {
        "AuthFailure",
        "Blocked",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "MissingAuthenticationToken",
        "OptInRequired",
        "PendingVerification",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnauthorizedOperation",
        "UnrecognizedClientException",
    }
)
CAPACITY_CODES = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "InsufficientReservedInstanceCapacity",
        "InsufficientCapacity",
        "InsufficientAddressCapacity",
        "InsufficientFreeAddressesInSubnet",
        "SpotMaxPriceTooLow",
        "Server.InsufficientInstanceCapacity",
    }
)
THROTTLING_CODES = frozenset(
    {
        "RequestLimitExceeded",
        "Throttling",
        "ThrottlingException",
        "RequestThrottled",
        "RequestThrottledException",
        "EC2ThrottledException",
        "TooManyRequestsException",
        "ServiceUnavailable",
        "Unavailable",
        "InternalError",
        "InternalFailure",
        "RequestTimeout",
        "500",
        "503",
    }
)
SLEEP_S = 300.0
MAX_SLEEP_S = 1200.0


@dataclass(frozen=True, slots=True)
class Offer:
    """A machine, which has a type, a market and a price, in a zone (``None``: any zone of the region)."""

    machine: Machine
    zone: str | None = None

    @property
    def name(self) -> str:
        """A name for logs and the ledger."""
        place = f" in {self.zone}" if self.zone else ""
        return f"{self.machine.name} {self.machine.market}{place}"


def classify_refusal(code: str) -> RefusalKind:
    """Classify an error code of a request for instances."""
    if code in CAPACITY_CODES:
        return "capacity"
    if code in QUOTA_CODES:
        return "quota"
    return "throttled" if code in THROTTLING_CODES else "configuration"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a cloud refused a request: its error code, and its own message."""

    code: str
    message: str = ""

    @property
    def kind(self) -> RefusalKind:
        """What the refusal means for the offer."""
        return classify_refusal(self.code)

    def __str__(self) -> str:
        """Describe the refusal in plain words, with the code and what the cloud adds to it."""
        words: str = {"capacity": "no capacity", "quota": "a quota is reached", "throttled": "too many requests"}.get(
            self.kind, "access denied" if self.code in ACCESS_CODES else "refused"
        )
        # where capacity is missing, the message only repeats the offer
        message = "" if self.kind == "capacity" else self.message.strip().rstrip(".")
        return f"{words} ({self.code}{f': {message}' if message else ''})"


def list_offers(planned: Machine, machines: Sequence[Machine], zones: Sequence[str]) -> tuple[Offer, ...]:
    """List the offers of a plan in the order in which they are tried.

    First come all zones of the planned machine, then the other markets of its type, then other types with as many
    accelerators, the cheapest first. A trial never straddles types, and any of these can take its place.
    """
    others = [
        machine
        for machine in machines
        if machine.accelerators == planned.accelerators
        and (machine.name, machine.market) != (planned.name, planned.market)
    ]
    others.sort(key=lambda machine: (machine.name != planned.name, machine.usd_per_hour / machine.speed))
    sides = [side for machine in (planned, *others) for side in _split_markets(machine)]
    if planned.spot is not None:
        # every spot offer comes before the first on demand, which waits for the slack to run out
        sides.sort(key=lambda side: side.market != "spot")
    return tuple(Offer(side, zone) for side in sides for zone in (zones or (None,)))


def _split_markets(machine: Machine) -> tuple[Machine, ...]:
    """Split a thrifty machine into its spot side and its on-demand side."""
    if machine.spot is None:
        return (machine,)
    terms = machine.spot
    spot = replace(
        machine,
        market="spot",
        usd_per_hour=terms.usd_per_hour,
        interruptions_per_hour=terms.interruptions_per_hour,
        spot=None,
    )
    return spot, replace(machine, market="on-demand", spot=None)


@dataclass(slots=True)
class OfferState:
    """What a run knows of an offer: until when it sleeps, its refusals in a row, and the code that ended it."""

    sleeps_until: float = 0.0
    refusals: int = 0
    end_code: str = ""


@dataclass(slots=True)
class OfferBook:
    """The offers of a run with their states.

    Attributes:
        offers: What to try in order.
        is_on_demand_allowed: Whether on-demand offers may be tried; a thrifty run allows them when slack runs out.
        states: States by offer.
    """

    offers: tuple[Offer, ...]
    is_on_demand_allowed: bool = True
    states: dict[Offer, OfferState] = field(default_factory=dict)

    def select(self, now: float) -> Offer | None:
        """Select the first offer that may be tried now."""
        return next((offer for offer in self.offers if self._is_awake(offer, now)), None)

    def has_any(self) -> bool:
        """Return whether any offer has not ended for the run."""
        return any(not self._get(offer).end_code for offer in self.offers)

    def group_ended(self) -> dict[str, list[str]]:
        """Group the names of the offers that ended for the run by the code of the refusal."""
        groups: dict[str, list[str]] = {}
        for offer, state in self.states.items():
            if state.end_code:
                groups.setdefault(state.end_code, []).append(offer.name)
        return groups

    def describe_ended(self) -> str:
        """Describe which offers ended for the run, and why."""
        return "; ".join(f"{code} for {format_names(names, 1)}" for code, names in self.group_ended().items())

    def record_grant(self, offer: Offer) -> None:
        """Record that instances of an offer were granted."""
        self._get(offer).refusals = 0

    def count_refusals(self, offer: Offer) -> int:
        """Count the refusals of an offer since its last grant."""
        return self._get(offer).refusals

    def record_refusal(self, offer: Offer, now: float, *, end_code: str = "") -> float:
        """Record a refusal, which ends the offer for the run or puts it to sleep, and return until when it sleeps."""
        state = self._get(offer)
        if end_code:
            state.end_code = end_code
            return float("inf")
        state.sleeps_until = now + min(SLEEP_S * 2.0**state.refusals, MAX_SLEEP_S)
        state.refusals += 1
        return state.sleeps_until

    def describe_next(self, now: float) -> str:
        """Describe which offer is tried next, and when."""
        waiting = [offer for offer in self.offers if self._may_be_tried(offer)]
        if not waiting:
            return "on demand when the slack runs out" if self.has_any() else "no other offer"
        following = self.select(now) or min(waiting, key=lambda offer: self._get(offer).sleeps_until)
        rest_s = self._get(following).sleeps_until - now
        return following.name + (f" in {format_duration(rest_s)}" if rest_s > 0 else "")

    def _may_be_tried(self, offer: Offer) -> bool:
        is_allowed = self.is_on_demand_allowed or offer.machine.market == "spot"
        return is_allowed and not self._get(offer).end_code

    def _is_awake(self, offer: Offer, now: float) -> bool:
        return self._may_be_tried(offer) and self._get(offer).sleeps_until <= now

    def _get(self, offer: Offer) -> OfferState:
        return self.states.setdefault(offer, OfferState())


def describe_shortfall(
    book: OfferBook, offer: Offer, granted: int, count: int, now: float, refusal: Refusal | None = None
) -> str:
    """Describe how many instances an offer lacked, why, and which offer is tried next; the refusal is in the book."""
    reason = f", {refusal}" if refusal else ""
    return f"{offer.name}: {granted} of {count} granted{reason}; next: {book.describe_next(now)}"


def require_plausible_price(offer: Offer) -> None:
    """Refuse to rent at a price that no provider charges, as fakes of EC2 report.

    Raises:
        UnfoldError: The price is implausible.
    """
    reason = find_implausibility(offer.machine.usd_per_hour)
    if reason:
        raise user_error(f"nothing is rented: {reason}", key="cloud.instances", hint="unfold catalog shows prices")


def fill_from_offers(
    book: OfferBook,
    count: int,
    rent_from: Callable[[Offer, int], list[str]],
    release: Callable[[list[str]], None],
    wall: Callable[[], float],
    wait: Callable[[], None] | None = None,
) -> list[str]:
    """Rent up to ``count`` nodes from one offer after another, and return their names.

    Args:
        book: The offers.
        count: How many.
        rent_from: Rents up to a number of nodes from an offer.
        release: Releases the nodes if anything fails.
        wall: The wall clock.
        wait: Called while no node is rented and every offer sleeps; if ``None``, no node is returned then.
    """
    names: list[str] = []
    try:
        while len(names) < count:
            offer = book.select(wall())
            if offer is not None:
                names += rent_from(offer, count - len(names))
            elif names or wait is None:
                break
            else:
                wait()
    except BaseException:
        release(names)
        raise
    return names
