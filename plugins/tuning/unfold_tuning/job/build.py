"""From the spec's cloud and profile to the planner's: prices looked up, each with its origin."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from unfold_tuning.job import schedule
from unfold_tuning.job.profile import Machine, Profile, Spread
from unfold_tuning.schema.models import (
    Cloud,
    Custom,
    Delay,
    Halving,
    Hyperband,
    InstanceSpec,
    ProfileSpec,
    RandomSearch,
    TuningSpec,
)
from unfoldkit.api import Run, UnfoldError, broken, fail
from unfoldkit.catalog.aws import Clients, clients, refresh
from unfoldkit.catalog.billing import Billing
from unfoldkit.catalog.bundled import bundled, catalog
from unfoldkit.catalog.cache import cached
from unfoldkit.catalog.instances import Book, Catalog, Instance
from unfoldkit.catalog.price_lists import read_prices

GIB = 1024**3
PROVISION_CV = 0.5
STARTUP_CV = 0.15


def stages_of(search: Halving | Hyperband | RandomSearch | Custom) -> tuple[schedule.Stage, ...]:
    """Return the stage table of a search."""
    if isinstance(search, Halving):
        return schedule.successive_halving(search.trials, search.min_iters, search.max_iters, search.eta)
    if isinstance(search, Hyperband):
        return schedule.hyperband(search.max_iters, search.eta, parallel=search.brackets == "parallel")
    if isinstance(search, RandomSearch):
        return schedule.random_search(search.trials, search.iters)
    return schedule.custom([(rung.trials, rung.iters) for rung in search.stages])


def profile_of(given: ProfileSpec) -> Profile:
    """Return the planner's profile, of a record that was read; a time without a spread gets the documented one."""
    if given.iteration is None:
        raise broken("a record that was not read")
    return Profile(
        iteration=Spread(given.iteration.mean, given.iteration.std),
        speedup=tuple(sorted(given.speedup.items())),
        across=tuple(sorted((given.across or {}).items())),
        provision=_spread(given.provision, PROVISION_CV),
        startup=_spread(given.startup, STARTUP_CV),
        start=_spread(given.start, 0.0),
        sync=_spread(given.sync, 0.0),
        trial_cv=given.trial_spread,
        worker_cv=given.worker_spread,
        error_cv=given.error,
    )


def machines_of(spec: TuningSpec, run: Run, make: Callable[[str], Clients] = clients) -> list[Machine]:
    """Return the machines that may be rented, one for each type and market.

    Raises:
        UnfoldError: a type or its price is not known.
    """
    cloud = spec.cloud
    found = None if cloud.provider == "local" else _catalog(cloud, run, make)
    markets = {"on-demand": [False], "spot": [True], "either": [False, True]}[cloud.market]
    return [
        _machine(cloud, item, index, found, spot=spot) for index, item in enumerate(cloud.instances) for spot in markets
    ]


def _catalog(cloud: Cloud, run: Run, make: Callable[[str], Clients]) -> Catalog:
    books: list[Book] = []
    if cloud.prices == "live":
        names = [item if isinstance(item, str) else item.type for item in cloud.instances]
        now = dt.datetime.now(dt.UTC)
        books.append(refresh(make(cloud.region), cloud.region, names, now, bundled(cloud.region)).book)
    elif cloud.prices:
        books.append(read_prices(run.path(cloud.prices, key="cloud.prices"), cloud.region))
    if cloud.provider != "aws":
        return Catalog(tuple(books))
    kept = cached(Path(run.options["cache"]), cloud.region) if "cache" in run.options else None
    return catalog(cloud.region, *books, *([kept] if kept else []))


def _machine(cloud: Cloud, item: str | InstanceSpec, index: int, found: Catalog | None, *, spot: bool) -> Machine:
    given = InstanceSpec(type=item) if isinstance(item, str) else item
    key = f"cloud.instances[{index}]"
    known = _known(given, found, key)
    own = given.spot if spot else given.price
    price = own if own is not None else (known.spot if spot else known.on_demand)
    accelerators = given.accelerators or known.accelerators
    if price is None or not accelerators:
        what = ("spot price" if spot else "price") if price is None else "number of accelerators"
        hint = f"write {{type: {given.type}, {'spot' if spot else 'price'}: $1/h}}, or unfold catalog refresh"
        raise fail(f"the {what} of {given.type} in {cloud.region} is not known", key=key, hint=hint)
    return Machine(
        name=given.type,
        accelerators=accelerators,
        price=price,
        speed=given.speed,
        limit=cloud.limit,
        billing=Billing(cloud.billing.increment, cloud.billing.minimum, cloud.billing.per),
        ingress=cloud.transfer * cloud.data / GIB,
        head=cloud.head,
        hazard=cloud.interruptions * 3600 if spot else 0.0,
        checkpoint_iters=cloud.checkpoint_iters,
        origin="spec" if own is not None else _origin(known, spot=spot),
        market="spot" if spot else "on-demand",
    )


def _known(given: InstanceSpec, found: Catalog | None, key: str) -> Instance:
    if found is None or (given.accelerators and given.type not in found.names()):
        return Instance(given.type)
    try:
        return found.find(given.type, price=given.price)
    except UnfoldError as error:
        raise UnfoldError(*(replace(item, key=key) for item in error.diagnostics)) from error


def _origin(known: Instance, *, spot: bool) -> str:
    derived = ", derived" if spot and known.spot_derived else ""
    return f"{' '.join(known.origin(spot=spot))}{derived}".strip()


def _spread(given: float | Delay, cv: float) -> Spread:
    return Spread(given.mean, given.std) if isinstance(given, Delay) else Spread(given, given * cv)
