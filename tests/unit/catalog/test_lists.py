"""Price lists of all sorts: tables of one's own, and what clouds give out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unfoldkit.catalog.currency import PriceUnit, parse_price, parse_unit
from unfoldkit.catalog.instances import PriceBook
from unfoldkit.catalog.price_lists import read_prices
from unfoldkit.errors import UnfoldError

EAST = "us-east-1"


def book(folder: Path, content: object, region: str = EAST) -> PriceBook:
    """Read a list from a file."""
    path = folder / "list"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_prices(path, region)


@pytest.mark.parametrize(
    ("head", "price", "dollars_an_hour"),
    [
        ("instance,price", "0.526", 0.526),
        ("Machine Type;Price", "0,526", 0.526),
        ("name,usd_per_hour", "0.526", 0.526),
        ("API Name,Linux On Demand cost", "$0.526 hourly", 0.526),
        ("sku,Monthly cost ($)", '"$1,460.00"', 2.0),
        ("type,price_per_second", "0.001", 3.6),
        ("type,weekly cost", "168", 1.0),
        ("type,Unit Price", "0.526", 0.526),
        ("vm,price", "380 USD/month", 380 / 730),
        ("instance_type,hourly rate", "US$ 3", 3.0),
        ("instance,price (cents)", "52.6", 0.526),
        ("instance,price (cents)", "$0.526", 0.526),
        ("instance,price", "52.6¢", 0.526),
        ("instance,price", "0.526 USD per Hour", 0.526),
    ],
)
def test_a_table_of_any_names_and_units_is_dollars_an_hour(
    tmp_path: Path, head: str, price: str, dollars_an_hour: float
) -> None:
    """A column of types and one of prices suffice, in the unit of the header or the cell."""
    apart = ";" if ";" in head else ","
    found = book(tmp_path, f"{head}\nbox{apart}{price}\n").rows["box"]
    assert found.on_demand == pytest.approx(dollars_an_hour)
    assert (found.spot, found.source) == (None, "list")


def test_a_table_may_list_hardware_spot_and_regions(tmp_path: Path) -> None:
    """Columns beside the price are read; rows of other regions and systems and those without a price are not."""
    text = (
        "type,vCPU,Memory (GiB),gpu_name,gpu_count,on_demand_usd_per_hour,spot_saving_pct,spot_usd_per_hour,region,OS\n"
        "g5,4,16 GiB,A10G,1,1.006,60,0.4,us-east-1,Linux\ng5,4,16,A10G,1,1.2,60,0.5,eu-west-1,Linux\n"
        "g5,4,16,A10G,1,1.19,60,0.5,us-east-1,Windows\nold,1,1,,,N/A,,,us-east-1,\n"
    )
    rows = book(tmp_path, text).rows
    assert list(rows) == ["g5"]
    found = rows["g5"]
    assert (found.vcpus, found.memory_gib, found.gpu, found.gpus) == (4, 16.0, "A10G", 1)
    assert (found.on_demand, found.spot) == (1.006, 0.4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("instance,price_eur\na,1\n", r"list:2:1: price_eur: '1' is in EUR, and prices are in dollars here \(convert"),
        ("instance,price,currency\na,1,GBP\n", "'1 GBP' is in GBP"),
        ('instance,price\na,"0,526"\n', "'0,526' is not a price"),
        ("instance,price\na,1\na,2\n", "list:3:1: a: this type has another price above"),
        ("instance,price\na,5000\n", r"list:2:1: price: \$5000/h is outside"),
        ("instance,weight\na,1\n", "list:1:1: no column of prices .*it has instance, weight"),
        ("instance,gpus,price_per_gpu_hour\na,8,4.1\n", r"no column of prices .*of the instance, not of a GPU"),
        ("instance,GPU price ($/h)\na,4.1\n", "no column of prices"),
        ("instance,price per vCPU\na,0.05\n", "no column of prices"),
        ("price\n1\n", "no column of instance types"),
        ("instance,price,region\na,1,moon\n", "no price in US dollars for the region 'us-east-1'"),
        ("{", "cannot read the price list"),
        ('{"SpotPriceHistory": [{"SpotPrice": "x"}]}', "does not match its format"),
        ("{}", r"no price in US dollars for the region 'us-east-1' \("),
        ('["{", "type"]', r"no price in US dollars for the region 'us-east-1' \("),
        ('{"a": {"PriceList": ["{", 3]}}', r"no price in US dollars for the region 'us-east-1' \("),
        (f"{'[' * 200}{']' * 200}", r"no price in US dollars for the region 'us-east-1' \("),
        (
            '{"skus": [{"skuId": "1", "pricingInfo": []}]}',
            r"list: Google's catalog .*\(give SkyPilot's vms.csv of gcp",
        ),
    ],
)
def test_an_unreadable_list_is_reported(tmp_path: Path, text: str, expected: str) -> None:
    """Other currencies, invalid or impossible prices, two prices of a type and strange files are refused."""
    with pytest.raises(UnfoldError, match=expected):
        book(tmp_path, text)


HEAD = "SKU,OfferTermCode,TermType,Unit,PricePerUnit,Currency,Instance Type,vCPU,Tenancy,Operating System,Region Code"
META = '"FormatVersion","v1.0"\n"Disclaimer","a, b"\n"Version","2026"\n"OfferCode","AmazonEC2"\n'


def offer_row(**changes: str) -> str:
    """A row of an offer file of AWS in CSV."""
    row = {
        "SKU": "A",
        "OfferTermCode": "B",
        "TermType": "OnDemand",
        "Unit": "Hrs",
        "PricePerUnit": "1.006",
        "Currency": "USD",
        "Instance_Type": "g5.xlarge",
        "vCPU": "4",
        "Tenancy": "Shared",
        "Operating_System": "Linux",
        "Region_Code": EAST,
        **changes,
    }
    return ",".join(f'"{row[name.replace(" ", "_")]}"' for name in HEAD.split(",")) + "\n"


OTHER_OFFERS = (
    ({"Operating_System": "Windows"}, "system Windows"),
    ({"Region_Code": "eu-west-1"}, "region eu-west-1"),
    ({"TermType": "Reserved"}, "term Reserved"),
    ({"Tenancy": "Dedicated"}, "capacity Dedicated"),
    ({"Currency": "CNY"}, "currency CNY"),
    ({"Unit": "Quantity"}, "unit Quantity"),
)


@pytest.mark.parametrize("meta", ["", META])
def test_an_offer_file_of_aws_may_be_csv(tmp_path: Path, meta: str) -> None:
    """Of the prices of a type, that on demand for Linux on shared machines in dollars an hour counts."""
    others = "".join(offer_row(**changes, PricePerUnit="0.5") for changes, _ in OTHER_OFFERS)
    rows = book(tmp_path, f"{meta}{HEAD}\n{others}{offer_row()}{offer_row(Instance_Type='')}").rows
    assert {name: (row.on_demand, row.vcpus) for name, row in rows.items()} == {"g5.xlarge": (1.006, 4)}
    assert list(book(tmp_path, "SKU,price\na,1\n").rows) == ["a"], "a table of the user with the same first column"
    with pytest.raises(UnfoldError, match="no column Currency"):
        book(tmp_path, f"{META}{HEAD.replace('Currency,', '')}\n")


@pytest.mark.parametrize(("changes", "expected"), OTHER_OFFERS)
def test_a_list_without_a_price_that_counts_is_described(
    tmp_path: Path, changes: dict[str, str], expected: str
) -> None:
    """The error states what the prices are for, and nothing that would count."""
    with pytest.raises(UnfoldError, match=f"for the region 'us-east-1'; the list has {expected} "):
        book(tmp_path, f"{HEAD}\n{offer_row(**changes)}")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("type,price,os,region\na,1,RHEL,us-east-1\nb,1,Linux,moon\n", "system RHEL; region moon"),
        ([{"instance_type": "a", "pricing": {"eu-1": {"linux": {}}}}], "region eu-1"),
        ([{"instance_type": "a", "pricing": {EAST: {"mswin": {}}}}], "system mswin"),
        ({"Items": [{"armRegionName": "x", "type": "Reservation", "currencyCode": "EUR"}]}, "region x; term .*; cur.*"),
        ({"Items": [{"armRegionName": EAST, "productName": "NC Windows", "unitOfMeasure": "1 Hour"}]}, "system NC Win"),
    ],
)
def test_lists_of_other_forms_are_described(tmp_path: Path, document: object, expected: str) -> None:
    """Tables, ec2instances.info and Azure name regions, systems and terms by other keys."""
    with pytest.raises(UnfoldError, match=f"for the region 'us-east-1'; the list has {expected}"):
        book(tmp_path, document)


def spot(name: str, price: str, zone: str, hour: int, system: str = "Linux/UNIX") -> dict[str, str]:
    """A row of the history of spot prices."""
    stamp = f"2026-01-01T{hour:02}:00:00+00:00"
    return {
        "AvailabilityZone": zone,
        "InstanceType": name,
        "ProductDescription": system,
        "SpotPrice": price,
        "Timestamp": stamp,
    }


def test_spot_prices_are_the_newest_of_the_cheapest_zone(tmp_path: Path) -> None:
    """Older prices, other systems and other regions do not count, nor do other zones than those that are named."""
    rows = [
        spot("g5", "0.40", "us-east-1a", 5),
        spot("g5", "0.30", "us-east-1a", 4),
        spot("g5", "0.50", "us-east-1b", 6),
        spot("g5", "0.20", "us-east-1b", 6, "Windows"),
        spot("g5", "0.10", "us-west-2a", 6),
    ]
    assert book(tmp_path, {"SpotPriceHistory": rows}).rows["g5"].spot == 0.4
    assert book(tmp_path, rows).rows["g5"].on_demand is None
    assert read_prices(tmp_path / "list", EAST, ["us-east-1b"]).rows["g5"].spot == 0.5
    # times with an offset, and the hour that a clock repeats in autumn; a local zone is another place
    later = spot("g5", "0.45", "us-east-1a", 5) | {"Timestamp": "2026-01-01T01:15:00-05:00"}
    earlier = spot("g5", "0.30", "us-east-1a", 5) | {"Timestamp": "2026-01-01T01:45:00-04:00"}
    rows = [later, earlier, spot("g5", "0.10", "us-east-1-bos-1a", 6)]
    assert book(tmp_path, rows).rows["g5"].spot == 0.45
    table = "\n".join(",".join(row) for row in ([*rows[0]], *(row.values() for row in rows)))
    assert book(tmp_path, table).rows["g5"].spot == 0.45


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"SpotPrice": "0.000000"}, "SpotPrice: 0.0 is not a price"),
        ({"SpotPrice": "-0.4"}, "SpotPrice: -0.4 is not a price"),
        ({"SpotPrice": "nan"}, "SpotPrice: nan is not a price"),
        ({"SpotPrice": "5000"}, r"SpotPrice: \$5000/h is outside"),
        ({"SpotPrice": "free"}, "SpotPrice: 'free' is not a price"),
        ({"SpotPrice": ""}, "SpotPrice: '' is not a price"),
        ({"Timestamp": "yesterday"}, "Timestamp: 'yesterday' is not a time"),
    ],
)
def test_a_wrong_row_of_a_spot_history_is_named(tmp_path: Path, changed: dict[str, str], expected: str) -> None:
    """A price of 0 once left the type without a spot price, and no message said so; other regions are not read."""
    rows = [spot("g5", "0.40", "us-east-1a", 5), spot("g5", "0.30", "us-east-1b", 6) | changed]
    with pytest.raises(UnfoldError, match=rf"list: {expected}.*: row 2 of the spot prices"):
        book(tmp_path, {"SpotPriceHistory": rows})
    table = "\n".join(",".join(row) for row in ([*rows[0]], *(row.values() for row in rows)))
    with pytest.raises(UnfoldError, match=rf"list:3:1: {expected}"):
        book(tmp_path, table)
    rows[1]["AvailabilityZone"] = "us-west-2a"
    assert book(tmp_path, {"SpotPriceHistory": rows}).rows["g5"].spot == 0.4


def test_of_two_spot_prices_at_one_time_the_higher_counts(tmp_path: Path) -> None:
    """Rows of either order are the same history, and a classic account's name of Linux is Linux."""
    rows = [spot("g5", "0.60", "us-east-1a", 5), spot("g5", "0.40", "us-east-1a", 5, "Linux/UNIX (Amazon VPC)")]
    assert book(tmp_path, {"SpotPriceHistory": rows}).rows["g5"].spot == 0.6
    assert book(tmp_path, {"SpotPriceHistory": rows[::-1]}).rows["g5"].spot == 0.6


def test_zones_may_have_only_their_ids(tmp_path: Path) -> None:
    """Each account names the zones differently: of named zones with unknown prices, the dearest one counts."""
    rows: list[dict[str, Any]] = [
        {"AvailabilityZoneId": zone, "InstanceType": "g5", "SpotPrice": price, "Timestamp": stamp}
        for zone, price, stamp in (
            ("use1-az1", "0.30", 1), ("use1-az1", "0.40", 2), ("use1-az4", "0.50", 1), ("use1-bos1-az1", "0.10", 1),
            ("usw2-az1", "0.20", 1),
        )
    ]  # fmt: skip
    assert book(tmp_path, {"SpotPriceHistory": rows}).rows["g5"].spot == 0.4
    assert read_prices(tmp_path / "list", EAST, ["us-east-1b"]).rows["g5"].spot == 0.5
    assert read_prices(tmp_path / "list", EAST, ["use1-az1"]).rows["g5"].spot == 0.4
    for region, zone in (("ap-southeast-2", "apse2-az3"), ("us-gov-west-1", "usgw1-az1"), ("ap-south-1", "aps1-az2")):
        assert book(tmp_path, [rows[0] | {"AvailabilityZoneId": zone}], region).rows["g5"].spot == 0.3


@pytest.mark.parametrize("separator", ["\n", "", None])
def test_pages_of_an_answer_count_together(tmp_path: Path, separator: str | None) -> None:
    """A loop over tokens writes a document a page, after one another or in a list: an older page is no other price."""
    pages = [
        {"SpotPriceHistory": [spot("g5", "0.30", "us-east-1a", 4)], "NextToken": "x"},
        {"SpotPriceHistory": [spot("g5", "0.40", "us-east-1a", 5), spot("g6", "0.50", "us-east-1a", 5)]},
    ]
    text = json.dumps(pages) if separator is None else separator.join(map(json.dumps, pages))
    rows = book(tmp_path, text).rows
    assert (rows["g5"].spot, rows["g6"].spot) == (0.4, 0.5)


def product(name: str, **other: str) -> dict[str, Any]:
    """A product of AWS's price list."""
    usual = {"operatingSystem": "Linux", "tenancy": "Shared", "preInstalledSw": "NA", "capacitystatus": "Used"}
    fields = {"instanceType": name, "regionCode": EAST, "vcpu": "4", "memory": "16 GiB", "gpu": "1", **usual, **other}
    return {"attributes": fields}


def terms(price: str) -> dict[str, Any]:
    """The terms of a product."""
    return {"T": {"priceDimensions": {"D": {"unit": "Hrs", "pricePerUnit": {"USD": price}}}}}


def test_a_price_list_of_aws_counts_linux_on_shared_machines(tmp_path: Path) -> None:
    """Windows, dedicated and reserved capacity have prices of their own, which are not taken; both forms are read."""
    offered = [
        (product("g5"), "1.006"),
        (product("g5", operatingSystem="Windows"), "0.5"),
        (product("g5", tenancy="Dedicated"), "0.6"),
        (product("g5", capacitystatus="UnusedCapacityReservation"), "0.7"),
        (product("g5", regionCode="eu-west-1"), "0.8"),
    ]
    asked = {"PriceList": [json.dumps({"product": p, "terms": {"OnDemand": terms(usd)}}) for p, usd in offered]}
    filed = {
        "products": {str(n): p for n, (p, _) in enumerate(offered)},
        "terms": {"OnDemand": {str(n): terms(usd) for n, (_, usd) in enumerate(offered)}},
    }
    for document in (asked, filed):
        found = book(tmp_path, document).rows["g5"]
        assert (found.on_demand, found.vcpus, found.memory_gib, found.gpus) == (1.006, 4, 16.0, 1)


def test_retail_prices_of_azure_are_of_linux_by_the_hour(tmp_path: Path) -> None:
    """Spot is recognized by its name; other systems, services, tiers, regions and times are skipped."""

    def item(price: float, product: str = "NC Series", sku: str = "NC6", **other: Any) -> dict[str, Any]:
        usual = {"currencyCode": "USD", "unitOfMeasure": "1 Hour", "type": "Consumption", "armRegionName": "eastus"}
        return {"armSkuName": "NC6", "retailPrice": price, "productName": product, "skuName": sku, **usual, **other}

    rows = [
        item(0.9),
        item(0.3, sku="NC6 Spot"),
        item(0.2, sku="NC6 Low Priority"),
        item(0.5, "NC Series Windows"),
        item(5000.0, type="Reservation"),
        item(0.1, armRegionName="westus"),
        item(0.4, "NC Series Cloud Services"),
        item(0.6, tierMinimumUnits=1000.0),
        item(0.5, effectiveStartDate="2999-01-01T00:00:00Z"),
        item(0.7, "NCv1 Series", effectiveStartDate="2018-01-01T00:00:00Z"),
        item(1.1, "NCv1 Series", effectiveStartDate="2020-01-01T00:00:00Z"),
    ]
    found = book(tmp_path, {"Items": rows}, "eastus").rows["NC6"]
    assert (found.on_demand, found.spot) == (0.9, 0.3)


def test_ec2instances_info_is_read(tmp_path: Path) -> None:
    """Types with Linux prices in the region count; others are left out."""
    rows = [
        {
            "instance_type": "g5",
            "vCPU": 4,
            "memory": 16.0,
            "GPU": 1,
            "GPU_model": "NVIDIA A10G",
            "pricing": {EAST: {"linux": {"ondemand": "1.006", "spot_min": "0.4"}}},
        },
        {"instance_type": "new", "vCPU": 4, "pricing": {}},
    ]
    rows_found = book(tmp_path, rows).rows
    assert list(rows_found) == ["g5"]
    assert (rows_found["g5"].on_demand, rows_found["g5"].spot, rows_found["g5"].gpus) == (1.006, 0.4, 1)


def test_column_names_identify_prices() -> None:
    """A price has a market, a unit of time and a currency; savings and other systems are none."""
    assert parse_unit("Spot (monthly)") == PriceUnit(730.0, spot=True)
    assert parse_unit("cost_eur") == PriceUnit(foreign="EUR")
    assert [parse_unit(name) for name in ("spot_saving_pct", "Windows On Demand cost", "memory", "vcpus")] == [None] * 4
    assert parse_price("N/A", PriceUnit()) is None
    with pytest.raises(ValueError, match="'€3' is in €"):
        parse_price("€3", PriceUnit())
