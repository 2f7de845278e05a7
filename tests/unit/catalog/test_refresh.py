"""Prices from AWS, against fakes: moto for EC2, a stub for the Price List."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from unfoldkit.catalog.aws import AwsClients, request_prices
from unfoldkit.catalog.price_books import load_bundled_book
from unfoldkit.cli.commands.catalog import open_catalog, refresh_prices
from unfoldkit.errors import UnfoldError

sys.path.insert(0, str(Path(__file__).parent))
import fakes

NOW = fakes.NOW
BUNDLED = load_bundled_book()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore", "ignore::DeprecationWarning:moto")


@pytest.fixture
def cloud() -> Iterator[object]:
    """A fake EC2 in this process."""
    with mock_aws():
        yield boto3.client("ec2", region_name="us-east-1", **fakes.KEYS)


def test_pages_of_every_call_are_followed() -> None:
    """A figure on the second page of any of the three calls is found like one on the first."""
    ec2 = fakes.ec2_stub(
        [[fakes.hardware("g5.xlarge", 4, 16384, "A10G", 1)], [fakes.hardware("c7i.large", 2, 4096)]],
        [[fakes.offer("g5.xlarge", "us-east-1a", "0.41", NOW)], [fakes.offer("c7i.large", "us-east-1a", "0.03", NOW)]],
    )
    pricing = fakes.pricing([fakes.product("g5.xlarge", "1.006")], [fakes.product("c7i.large", "0.0892")])
    rows = request_prices(AwsClients(pricing, ec2), "us-east-1", ["c7i.large", "g5.xlarge"], NOW, BUNDLED).book.rows
    assert [(row.on_demand, row.spot, row.vcpus) for row in rows.values()] == [(0.0892, 0.03, 2), (1.006, 0.41, 4)]
    assert (rows["g5.xlarge"].gpu, rows["g5.xlarge"].gpus) == ("A10G", 1)


def test_spot_is_the_newest_change_of_the_cheapest_zone() -> None:
    """Of each zone only the newest change counts, and of the zones the cheapest, if none is named."""
    earlier = NOW - dt.timedelta(days=1)
    offers = [
        fakes.offer("g5.xlarge", "us-east-1a", "0.20", earlier),
        fakes.offer("g5.xlarge", "us-east-1a", "0.60", NOW),
        fakes.offer("g5.xlarge", "us-east-1b", "0.50", earlier),
    ]
    for zones, price in (([], 0.5), (["us-east-1a"], 0.6)):
        ec2 = fakes.ec2_stub([[fakes.hardware("g5.xlarge", 4, 16384)]], [offers])
        clients = AwsClients(fakes.pricing([fakes.product("g5.xlarge", "1.006")]), ec2)
        book = request_prices(clients, "us-east-1", ["g5.xlarge"], NOW, BUNDLED, zones).book
        assert book.rows["g5.xlarge"].spot == price


@pytest.mark.e2e
def test_prices_of_the_fake_cloud_are_refused(cloud: object) -> None:
    """Moto's spot price of 0.00001 dollars of 2006 never enters a book, and the refusal names it."""
    clients = AwsClients(fakes.pricing([fakes.product("g5.xlarge", "1.006")]), cloud)
    result = request_prices(clients, "us-east-1", ["g5.xlarge"], NOW, BUNDLED)
    assert result.book.rows["g5.xlarge"].spot is None
    assert [(item.name, item.market) for item in result.rejected] == [("g5.xlarge", "spot")]
    assert "2006" in result.rejected[0].reason


@pytest.mark.slow
def test_hardware_of_the_fake_cloud_agrees_with_the_bundled_table(cloud: object) -> None:
    """For the types that moto knows, vCPUs and GPUs equal the bundled row; one that it lacks does not fail the rest."""
    names = ["g5.12xlarge", "c7i.large", "p3.8xlarge"]
    priced = [fakes.product(name, str(BUNDLED.rows[name].on_demand)) for name in names]
    rows = request_prices(AwsClients(fakes.pricing(priced), cloud), "us-east-1", names, NOW, BUNDLED).book.rows
    for name in names[:2]:
        assert (rows[name].vcpus, rows[name].gpus) == (
            BUNDLED.rows[name].vcpus,
            BUNDLED.rows[name].gpus,
        )
    assert rows["p3.8xlarge"].on_demand == 12.24


@pytest.mark.parametrize(("price", "why"), [("0.00001", "outside"), ("106", "times away"), ("0", "not a price")])
def test_absurd_prices_are_refused(price: str, why: str) -> None:
    """A price of nothing, out of the market's range, or far from the known one is refused with its reason."""
    ec2 = fakes.ec2_stub([[]], [[]])
    good, bad = fakes.product("c7i.large", "0.0892"), fakes.product("g5.xlarge", price)
    result = request_prices(
        AwsClients(fakes.pricing([good, bad]), ec2), "us-east-1", ["g5.xlarge", "c7i.large"], NOW, BUNDLED
    )
    assert list(result.book.rows) == ["c7i.large"]
    assert why in result.rejected[0].reason


def test_no_usable_price_is_an_error() -> None:
    """When no answer of AWS is plausible, the cache is not replaced by an empty book."""
    ec2 = fakes.ec2_stub([[]], [[]])
    with pytest.raises(UnfoldError, match="no usable price"):
        request_prices(AwsClients(fakes.pricing([]), ec2), "us-east-1", ["g5.xlarge"], NOW, BUNDLED)


def test_a_refresh_is_remembered_with_its_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a refresh the cached price is preferred and named as the source; other types keep the bundled one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ec2 = fakes.ec2_stub([[fakes.hardware("g5.xlarge", 4, 16384)]], [[]])
    refresh_prices("us-east-1", NOW, AwsClients(fakes.pricing([fakes.product("g5.xlarge", "0.9")]), ec2))
    assert "$1.006/h -> $0.9/h" in capsys.readouterr().out
    found = open_catalog("us-east-1")
    assert [found.find(name).source for name in ("g5.xlarge", "g6.xlarge")] == ["cached", "bundled"]
    assert (found.find("g5.xlarge").on_demand, found.find("g5.xlarge").date) == (0.9, "2026-11-24")


def test_a_damaged_cache_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is not one is named with its file, never read as prices."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "unfoldkit").mkdir()
    (tmp_path / "unfoldkit/catalog-aws-us-east-1.json").write_text(json.dumps({"schema": "other"}))
    with pytest.raises(UnfoldError, match=r"catalog-aws-us-east-1\.json.*damaged"):
        open_catalog("us-east-1")
