"""What a budget counts where it comes without the price of a worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from unfold_tuning.deadline import limits
from unfold_tuning.deadline.limits import LimitKeeper, parse_limits
from unfold_tuning.deadline.machine_price import OWN, MachinePrice, find_machine_price
from unfoldkit.api import UnfoldError


def write_firmware(folder: Path, **files: str) -> Path:
    """Write what the firmware of a machine states."""
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")
    return folder


def test_a_machine_of_ec2_has_the_price_of_its_type(tmp_path: Path) -> None:
    """Its firmware names the type, the environment the region."""
    firmware = write_firmware(tmp_path, sys_vendor="Amazon EC2", product_name="g5.xlarge")
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    assert find_machine_price(firmware, environment) == MachinePrice(
        1.006, "the budget counts g5.xlarge at $1.006/h, on demand in us-east-1"
    )
    with pytest.raises(UnfoldError, match=r"g5\.xlarge in eu-west-3 is unknown.*unfold catalog refresh"):
        find_machine_price(firmware, {**environment, "AWS_DEFAULT_REGION": "eu-west-3"})
    write_firmware(tmp_path, product_name="z9.huge")
    with pytest.raises(UnfoldError, match=r"z9\.huge in us-east-1 is unknown"):
        find_machine_price(firmware, environment)


@pytest.mark.parametrize(
    ("files", "cloud"),
    [
        ({"sys_vendor": "Google", "product_name": "Google Compute Engine"}, "Google Cloud"),
        (
            {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"},
            "Azure",
        ),
        ({"sys_vendor": "QEMU", "chassis_asset_tag": "OracleCloud.com"}, "Oracle Cloud"),
    ],
)
def test_a_machine_of_another_cloud_needs_a_price(tmp_path: Path, files: dict[str, str], cloud: str) -> None:
    """A budget must not be ignored where the machine costs money."""
    with pytest.raises(UnfoldError, match=f"that of {cloud} is unknown"):
        find_machine_price(write_firmware(tmp_path, **files), {})


@pytest.mark.parametrize("files", [{}, {"sys_vendor": "Microsoft Corporation", "product_name": "Surface Laptop 5"}])
def test_a_machine_of_the_user_costs_nothing(tmp_path: Path, files: dict[str, str]) -> None:
    """Firmware that cannot be read, as in some containers, names no cloud."""
    assert find_machine_price(write_firmware(tmp_path, **files), {}) == MachinePrice(0.0, OWN)


def test_the_workers_share_the_price_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget stops the run when the machine has cost as much."""
    monkeypatch.setattr(limits, "find_machine_price", lambda: MachinePrice(36.0, ""))
    keeper = LimitKeeper(
        limits=parse_limits("2 h", "$1", None, 0.95), slots=4, trials=4, min_steps=1, max_steps=1, eta=3
    )
    keeper.wall, keeper.began = lambda: 1000.0, 1000.0
    keeper.share_machine(4)
    assert keeper.compute_time_left_s() == pytest.approx(100.0)
    monkeypatch.setattr(limits, "find_machine_price", lambda: MachinePrice(0.0, OWN))
    assert parse_limits("2 h", "$1", None, 0.95).budget_usd is None
