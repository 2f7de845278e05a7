"""The table, its filters, precedence, billing and the SkyPilot reader."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfoldkit.catalog.billing import Billing
from unfoldkit.catalog.instances import Instance, InstanceFilter, PriceBook, find_implausibility
from unfoldkit.catalog.price_books import load_bundled_book, load_catalog
from unfoldkit.catalog.price_lists import read_prices
from unfoldkit.catalog.skypilot import read_vms
from unfoldkit.cli import main
from unfoldkit.errors import UnfoldError


def test_every_bundled_row_is_whole() -> None:
    """Each row has hardware, a price that can be true, a date; a type with GPUs names them."""
    rows = load_bundled_book().rows.values()
    assert len(rows) >= 60
    for row in rows:
        assert row.vcpus > 0, row
        assert row.on_demand is not None, row
        assert not find_implausibility(row.on_demand), row
        assert row.date, row
        assert bool(row.gpus) == bool(row.gpu) == bool(row.gpu_memory_gib), row


@pytest.mark.shared
def test_bundled_figures_are_those_of_the_source(shared: Path) -> None:
    """Every bundled price, saving and size equals the file that it was carried over from."""
    with (shared / "data/prices/aws_us_east_1.csv").open(newline="") as stream:
        source = {row["instance_type"]: row for row in csv.DictReader(stream)}
    for name, row in load_bundled_book().rows.items():
        assert row.on_demand == pytest.approx(float(source[name]["on_demand_usd_per_hour"]), rel=1e-5)
        assert (row.vcpus, row.memory_gib) == (int(source[name]["vcpus"]), float(source[name]["memory_gib"]))
        assert row.gpus == int(source[name]["gpu_count"] or 0)


def test_the_first_book_that_knows_a_price_gives_it() -> None:
    """A price in the spec beats the live one, that the cached, that the bundled; the source names which it was."""
    live = PriceBook("live", "d1", {"g5.xlarge": Instance("g5.xlarge", on_demand=0.8, source="live", date="d1")})
    cached = PriceBook("cached", "d2", {"g5.xlarge": Instance("g5.xlarge", on_demand=0.9, source="cached", date="d2")})
    for books, want in [((live, cached), ("live", 0.8)), ((cached,), ("cached", 0.9)), ((), ("bundled", 1.006))]:
        found = load_catalog("us-east-1", *books).find("g5.xlarge")
        assert (found.source, found.on_demand) == want
        assert (found.vcpus, found.gpu) == (4, "A10G")
    assert load_catalog("us-east-1", live).find("g5.xlarge", price=2.0).source == "spec"


@pytest.mark.parametrize("name", ["c6i.xlarge", "my-own-box"])
def test_an_unknown_type_is_referred_to_the_list_and_to_a_price(name: str) -> None:
    """A type that the list lacks may still be right: whether or not another resembles it, the hint says what to do."""
    with pytest.raises(UnfoldError, match=r"unfold catalog lists .* state the price of another, such as price: \$1/h"):
        load_catalog("us-east-1").find(name)


def test_bundled_prices_are_of_one_region() -> None:
    """In another region the bundled table gives the hardware and no price."""
    found = load_catalog("eu-west-1").find("g5.xlarge")
    assert (found.vcpus, found.on_demand, found.spot) == (4, None, None)


@given(st.floats(0.01, 50), st.integers(0, 8), st.booleans())
def test_a_filter_admits_exactly_what_it_says(price: float, gpus: int, spot: bool) -> None:
    """What is listed keeps every bound, what is left out breaks one, and the order is by price."""
    found = load_catalog()
    wanted = InstanceFilter(min_gpus=gpus, max_price=price, spot=spot)
    chosen = found.choose(wanted)
    prices = [item.spot if spot else item.on_demand for item in chosen]
    assert prices == sorted(prices, key=float)
    for item in map(found.find, found.names()):
        cost = item.spot if spot else item.on_demand
        keeps = item.gpus >= gpus and cost is not None and cost <= price
        assert keeps == (item in chosen)


@given(st.floats(0, 1e5), st.sampled_from([1.0, 60.0, 3600.0]), st.sampled_from([0.0, 60.0, 3600.0]))
def test_a_bill_covers_the_life_and_no_more_than_an_increment_above(
    life: float, increment: float, minimum: float
) -> None:
    """Billed seconds are whole increments, never below life or minimum, and less than one increment above."""
    billed = float(Billing(increment, minimum).billed(life))
    assert billed % increment == pytest.approx(0, abs=1e-6)
    assert max(life, minimum) - 1e-6 <= billed < max(life, minimum) + increment + 1e-6


def test_vms_csv_takes_the_cheapest_zone(tmp_path: Path) -> None:
    """A SkyPilot table gives one row a type, with the spot price of its cheapest zone, and the name of the file."""
    path = tmp_path / "vms.csv"
    path.write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch\n"
        "g5.xlarge,A10G,1.0,4.0,16.0,,1.006,0.5,us-east-1,use1-az1,x86_64\n"
        "g5.xlarge,A10G,1.0,4.0,16.0,,1.006,0.4,us-east-1,use1-az2,x86_64\n"
        "g5.xlarge,A10G,1.0,4.0,16.0,,1.2,0.1,eu-west-1,euw1-az2,x86_64\n"
    )
    row = read_vms(path, "us-east-1").rows["g5.xlarge"]
    assert (row.on_demand, row.spot, row.gpu, row.gpus, row.vcpus) == (1.006, 0.4, "A10G", 1, 4)
    assert row.source == "vms.csv"


@pytest.mark.parametrize(
    ("zones", "spot"), [((), 1.1), (("us-central1-a",), 1.3), (("us-central1-f",), None), (("us-central1-b",), 1.1)]
)
def test_vms_csv_counts_spot_prices_of_named_zones_only(
    tmp_path: Path, zones: tuple[str, ...], spot: float | None
) -> None:
    """Where zones are named, a cheaper spot price of another one does not count; the on-demand price does."""
    path = tmp_path / "vms.csv"
    path.write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,SpotPrice,Region,AvailabilityZone\n"
        "a2-highgpu-1g,A100,1,12,85,3.67,1.3,us-central1,us-central1-a\n"
        "a2-highgpu-1g,A100,1,12,85,3.67,1.1,us-central1,us-central1-b\n"
    )
    row = read_prices(path, "us-central1", zones).rows["a2-highgpu-1g"]
    assert (row.on_demand, row.spot) == (3.67, spot)


@pytest.mark.parametrize(("zones", "spot"), [((), 0.4), (("us-east-1a",), 0.6)])
def test_vms_csv_counts_the_dearest_zone_where_names_are_unknown(
    tmp_path: Path, zones: tuple[str, ...], spot: float
) -> None:
    """The list has ids of AWS zones, which each account names in its own way."""
    path = tmp_path / "vms.csv"
    path.write_text(
        "InstanceType,vCPUs,MemoryGiB,Price,SpotPrice,Region,AvailabilityZone\n"
        "g5.xlarge,4,16,1.006,0.5,us-east-1,use1-az1\n"
        "g5.xlarge,4,16,1.006,0.4,us-east-1,use1-az2\n"
        "g5.xlarge,4,16,1.006,0.6,us-east-1,use1-az4\n"
    )
    assert read_prices(path, "us-east-1", zones).rows["g5.xlarge"].spot == spot


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1,2\n", "no column InstanceType"),
        ("InstanceType,vCPUs,MemoryGiB,Price,Region\nx,1,1,1,eu\n", "no row for the region"),
        ("InstanceType,vCPUs,MemoryGiB,Price,Region\nx,1,1,0.00001,us-east-1\n", "vms.csv:2:1: x: .*outside"),
    ],
)
def test_a_bad_vms_csv_is_reported(tmp_path: Path, text: str, expected: str) -> None:
    """Missing columns, a region that is absent and an absurd price are errors that name the file."""
    path = tmp_path / "vms.csv"
    path.write_text(text)
    with pytest.raises(UnfoldError, match=expected):
        read_vms(path, "us-east-1")


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["--gpu", "A10G", "--max-price", "$5/h"], 0, "the cheapest is g5.xlarge at $1.006/h"),
        (["--gpu", "a10g", "--max-price", "$0.5/h"], 1, "no type meets all conditions for $0.5/h"),
        (["--gpu", "A11G"], 2, 'did you mean "A10G"'),
        (["--max-price", "5"], 2, 'write "$5/h"'),
        (
            ["--region", "mars"],
            1,
            "no on demand price is known in mars; unfold catalog refresh --region mars",
        ),
    ],
)
def test_the_command_answers(
    words: list[str],
    code: int,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The listing ends with its answer, and the exit code is that answer."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["catalog", *words])
    text = capsys.readouterr()
    assert (ended.value.code, expected in text.out + text.err) == (code, True)
