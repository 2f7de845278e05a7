"""Which instances a job may rent, how they are billed and how they are started."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field

from unfold_tuning.schema.search import Count
from unfoldkit.api import Bytes, Duration, Model, Money, Price, Problem, Rate

ZONE_SEPARATORS = {"aws": "", "gcp": "-"}
"""What stands between the region and the letter of a zone; other clouds name zones without their region."""
ZONE_NAME = re.compile(r"[a-z]+-[a-z-]+\d+-?[a-z]")


class InstanceSpec(Model):
    """An instance type with figures that override those of the catalog."""

    type: str = Field(min_length=1, description="name of the instance type")
    price: Price | None = Field(default=None, description="on demand; that of the catalog if left out")
    spot: Price | None = Field(default=None, description="spot price; that of the catalog if left out")
    accelerators: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="accelerators of an instance; those of the catalog if left out"
    )
    speed: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=1.0, description="of an accelerator, relative to the profile's"
    )


class BillingSpec(Model):
    """Billing rules of the provider."""

    increment: Duration = Field(default=1.0, description="bills round up to a multiple of this")
    minimum: Duration = Field(default=60.0, description="shortest time that is billed")
    per: Literal["instance", "function"] = Field(
        default="instance", description="bill whole instances, or only accelerators that work"
    )


class Launch(Model):
    """How ``train`` starts instances. Image or setup bring Ray, unfoldkit and the dependencies of the trainable."""

    image: str | None = Field(
        default=None, description="AMI, such as ami-0abcdef1234567890; for SkyPilot any image_id, such as docker:me/it"
    )
    subnet: str | None = Field(default=None, description="AWS subnet, such as subnet-0abc")
    security_groups: tuple[str, ...] = Field(default=(), description="AWS security groups, such as sg-0abc")
    role: str | None = Field(default=None, description="name of the IAM instance profile")
    setup: str = Field(default="", max_length=8000, description="shell lines to run before the instance joins")
    grace: Duration = Field(default=3600.0, description="an instance shuts itself down this long after the deadline")


class Availability(Model):
    """A log of spot availability: one row per tick, one column per zone, 1 if an instance was available and 0 if not.

    Its last tick is the present. Only the last three days count.
    """

    path: str = Field(description="a CSV file")
    zones: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)] = Field(description="the columns to use")
    tick: Annotated[Duration, Field(gt=0)] = Field(default=300.0, description="time between two rows")


class Cloud(Model):
    """What can be rented, and how it is billed."""

    provider: Literal["aws", "gcp", "azure", "local", "ray", "skypilot"] = Field(
        default="aws",
        description="train starts aws and local instances, those of any cloud through skypilot, "
        "and uses nodes of a running ray cluster; the others are planned from given prices",
    )
    region: str = Field(default="us-east-1", description="region of the instances and of their prices")
    infra: str | None = Field(
        default=None,
        min_length=1,
        description="where SkyPilot starts instances, in its notation: aws/us-east-1, gcp, kubernetes; "
        "in this region of any of its clouds if left out",
    )
    instances: Annotated[tuple[str | InstanceSpec, ...], Field(min_length=1, max_length=16)] = Field(
        description="instance types to choose from"
    )
    zones: Annotated[tuple[str, ...], Field(max_length=16)] = Field(
        default=(), description="availability zones to try in this order; any zone of the region if left out"
    )
    resource: Literal["GPU", "CPU"] | None = Field(
        default=None, description="what an accelerator is in a running Ray cluster; GPU if left out"
    )
    limit: Annotated[int, Field(ge=1, le=1024)] = Field(default=64, description="maximum number of instances")
    market: Literal["on-demand", "spot", "either", "thrifty"] = Field(
        default="on-demand", description="thrifty: spot or wait while there is slack, on demand when it runs out"
    )
    availability: Availability | None = Field(default=None, description="log of the spot market, for thrifty plans")
    interruptions: Rate = Field(default=0.2 / 3600, description="losses of a spot instance per time, such as 0.2/h")
    checkpoint_iters: Count = Field(default=1, description="iterations between two checkpoints")
    billing: BillingSpec = Field(default=BillingSpec(), description="how time is billed")
    data: Bytes = Field(default=0, description="data copied to every new instance")
    transfer: Money = Field(default=0.0, description="price per GiB of data copied")
    disk: Price = Field(default=0.0, description="price of the disks of an instance, such as EBS volumes")
    head: Price = Field(default=0.0, description="price of the head node, for the whole job")
    launch: Launch | None = Field(default=None, description="how train starts instances")
    prices: str | None = Field(default=None, description="a price list, CSV or JSON, or live to query AWS")


def check_cloud(cloud: Cloud) -> Iterable[Problem]:
    """Yield repeated names, wrong zones, instances without a price, and markets that a provider does not have."""
    types = [item if isinstance(item, str) else item.type for item in cloud.instances]
    yield from _check_repeated(("cloud", "instances"), types)
    yield from _check_zones(cloud)
    if cloud.availability is not None and cloud.market != "thrifty":
        hint = "write market: thrifty"
        yield Problem(("cloud", "availability"), "only thrifty plans use a log of availability", hint=hint)
    infra = (cloud.infra or "").split("/")[0]
    if cloud.provider in ("gcp", "azure"):
        yield from _check_given_prices(cloud, cloud.provider)
    if cloud.provider == "skypilot" and infra not in ("", "*", "aws"):
        yield from _check_given_prices(cloud, infra)
    if cloud.provider == "local":
        yield from _check_priced_nodes(cloud, "a local node", "on this machine")
    if cloud.provider == "ray":
        yield from _check_priced_nodes(cloud, "a node of Ray", "in a Ray cluster")
        yield from _check_ray(cloud)
    elif cloud.resource is not None:
        yield Problem(
            ("cloud", "resource"), "applies to nodes of a running Ray cluster only", hint="write provider: ray"
        )
    yield from _check_launch(cloud)


def _check_launch(cloud: Cloud) -> Iterable[Problem]:
    """Yield an image that AWS does not have, and what only AWS or only SkyPilot has."""
    launch = cloud.launch or Launch()
    is_ami = re.fullmatch(r"ami-[0-9a-f]+", launch.image or "")
    if cloud.provider == "aws" and cloud.launch is not None and not is_ami:
        hint = "write image: ami-0abcdef1234567890"
        yield Problem(("cloud", "launch", "image"), "an AWS instance needs an AMI", hint=hint)
    if cloud.provider != "skypilot":
        if cloud.infra is not None:
            yield Problem(("cloud", "infra"), "applies to SkyPilot only", hint="write provider: skypilot")
        return
    for key in ("subnet", "security_groups", "role"):
        if getattr(launch, key):
            hint = "leave it out; ~/.sky/config.yaml has such settings"
            yield Problem(("cloud", "launch", key), "SkyPilot does not take it from a spec", hint=hint)
    infra, *regions = (cloud.infra or "").split("/")
    if infra == "aws" and regions[:1] not in ([], ["*"], [cloud.region]):
        hint = f"write region: {regions[0]}, from which prices are taken"
        yield Problem(("cloud", "infra"), f"{cloud.infra} is not in cloud.region, {cloud.region}", hint=hint)


def _check_priced_nodes(cloud: Cloud, node: str, where: str) -> Iterable[Problem]:
    """Yield nodes that are not fully described, and markets and zones: neither the catalog nor a market has them."""
    for index, instance in enumerate(cloud.instances):
        if isinstance(instance, str) or instance.price is None or instance.accelerators is None:
            hint = "write {type: node, accelerators: 1, price: $0.05/h}"
            yield Problem(("cloud", "instances", index), f"{node} needs accelerators and a price", hint=hint)
    if cloud.market != "on-demand":
        yield Problem(("cloud", "market"), f"there is no spot market {where}")
    if cloud.zones:
        yield Problem(("cloud", "zones"), f"there are no zones {where}", hint="leave zones out")


def _check_ray(cloud: Cloud) -> Iterable[Problem]:
    """Yield what a running Ray cluster does not offer: a choice of node types, launches, and a price list."""
    if len(cloud.instances) > 1:
        hint = "keep one: nodes are found by their number of accelerators"
        yield Problem(("cloud", "instances", 1), "a plan uses one type of node of a Ray cluster", hint=hint)
    if cloud.launch is not None:
        hint = "leave launch out: the autoscaler of the cluster starts nodes"
        yield Problem(("cloud", "launch"), "unfold does not start nodes of a Ray cluster", hint=hint)
    if cloud.prices is not None:
        hint = "leave prices out: cloud.instances has the price"
        yield Problem(("cloud", "prices"), "no price list has nodes of a Ray cluster", hint=hint)


def _check_zones(cloud: Cloud) -> Iterable[Problem]:
    """Yield zones that are written twice or belong to another region, and logs of zones in which nothing is rented."""
    logged = cloud.availability.zones if cloud.availability else ()
    yield from _check_repeated(("cloud", "zones"), cloud.zones)
    yield from _check_repeated(("cloud", "availability", "zones"), logged)
    separator = ZONE_SEPARATORS.get(cloud.provider)
    prefix = "" if separator is None else cloud.region + separator
    hint = f"write {prefix}a, or another region"
    for index, zone in enumerate(cloud.zones):
        if not zone.startswith(prefix):
            yield Problem(("cloud", "zones", index), f"{zone} is not a zone of {cloud.region}", hint=hint)
    for index, zone in enumerate(logged):
        path = ("cloud", "availability", "zones", index)
        # other columns, such as us-east-1a_v100, need not name a zone
        if not ZONE_NAME.fullmatch(zone):
            continue
        if not zone.startswith(prefix):
            yield Problem(path, f"{zone} is not a zone of {cloud.region}", hint=hint)
        elif cloud.zones and zone not in cloud.zones and zone.startswith(cloud.region):
            yield Problem(path, f"{zone} is not among cloud.zones", hint="add it there, or leave it out here")


def _check_repeated(path: tuple[str, ...], names: Sequence[str]) -> Iterable[Problem]:
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Problem((*path, index), f"{name} is written twice", hint="keep one: it would count twice")


def _check_given_prices(cloud: Cloud, vendor: str) -> Iterable[Problem]:
    """Yield instances without a price: the catalog only has AWS prices."""
    if cloud.prices == "live":
        yield Problem(("cloud", "prices"), "live queries AWS only", hint="name a SkyPilot vms.csv")
    for index, instance in enumerate(cloud.instances):
        if cloud.prices is None and (isinstance(instance, str) or instance.price is instance.spot is None):
            hint = "write cloud.prices: vms.csv, or {type: a2-highgpu-1g, price: $3.67/h, accelerators: 1}"
            yield Problem(("cloud", "instances", index), f"the catalog has no prices of {vendor}", hint=hint)
