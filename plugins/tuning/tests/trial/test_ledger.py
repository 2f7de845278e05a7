"""The ledger: bills, runs that must not be mixed, and files that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from unfold_tuning.job.profile import Machine
from unfold_tuning.trial.ledger import open_ledger
from unfoldkit.api import ExitCode, UnfoldError
from unfoldkit.catalog.billing import Billing

MACHINE = Machine("g5.xlarge", 1, 3.6, max_instances=4, billing=Billing(0.0, 0.0))


def test_functions_are_billed_while_they_run_and_data_by_the_instance(tmp_path: Path) -> None:
    """By function the bill is accelerator-seconds of trials; data is billed per instance, the head for the job."""
    billing = Billing(0.0, 0.0, "function")
    machine = Machine("p", 2, 7200.0, billing=billing, ingress_usd=3.0, head_usd_per_hour=3600.0)
    with open_ledger(tmp_path / "l.sqlite", machine, "a") as ledger:
        ledger.record_fact("began", 100.0)
        ledger.record_node_start("n", 7200.0, 110.0)
        ledger.record_part_start(0, 1, "n", 120.0, 2)
        ledger.record_part_end(1, 125.0)
        ledger.record_node_end("n", 200.0)
        assert ledger.compute_spent_usd() == pytest.approx(5 * 2 * 1.0 + 3.0 + 100.0)


def test_a_ledger_of_another_run_is_refused(tmp_path: Path) -> None:
    """A ledger that was begun with another spec is refused: its spend is not this run's."""
    path = tmp_path / "l.sqlite"
    with open_ledger(path, MACHINE, "a"):
        pass
    with pytest.raises(UnfoldError, match="another spec"), open_ledger(path, MACHINE, "b"):
        pass


def _fill_up(file: Path) -> None:
    """Write to a ledger until there is no room."""
    with open_ledger(file, MACHINE, "a") as ledger:
        ledger.record_trials(0, [{"x": 1}])
        pages = ledger.base.execute("PRAGMA page_count").fetchone()[0]
        ledger.base.execute(f"PRAGMA max_page_count = {pages}")
        ledger.record_trials(1, [{"x": "long" * 4096}])


def test_a_full_disk_keeps_what_the_ledger_holds(tmp_path: Path) -> None:
    """A write without room on the disk ends with code 3 and a hint, and earlier writes stay."""
    file = tmp_path / "ledger.sqlite"
    with pytest.raises(UnfoldError, match=r"full.*free some space") as caught:
        _fill_up(file)
    assert caught.value.code is ExitCode.INTERNAL
    with open_ledger(file, MACHINE, "a") as ledger:
        assert [len(ledger.list_trials(bracket)) for bracket in (0, 1)] == [1, 0]


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    """A file in place of the ledger that is none is named, with code 2."""
    file = tmp_path / "ledger.sqlite"
    file.write_text("no database" * 100)
    with (
        pytest.raises(UnfoldError, match=r"ledger.sqlite: this is not a ledger") as caught,
        open_ledger(file, MACHINE, "a"),
    ):
        pass
    assert caught.value.code is ExitCode.USAGE


@pytest.mark.parametrize("kept", [0, 50])
def test_an_empty_ledger_is_no_new_run(tmp_path: Path, kept: int) -> None:
    """A ledger of which little or nothing is left is named and stays; a run would forget its spend and instances."""
    file = tmp_path / "ledger.sqlite"
    with open_ledger(file, MACHINE, "a") as ledger:
        ledger.record_trials(0, [{"x": 1}])
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UnfoldError, match="or it is damaged") as caught, open_ledger(file, MACHINE, "a"):
        pass
    assert caught.value.code is ExitCode.USAGE
    assert len(file.read_bytes()) == kept


def test_a_ledger_without_facts_is_damaged(tmp_path: Path) -> None:
    """A ledger that does not hold what it was made from is not that of another spec: its spend would be forgotten."""
    file = tmp_path / "ledger.sqlite"
    with open_ledger(file, MACHINE, "a") as ledger, ledger.base:
        ledger.base.execute("DELETE FROM facts")
    with pytest.raises(UnfoldError, match="or it is damaged"), open_ledger(file, MACHINE, "a"):
        pass


def test_a_deleted_ledger_is_not_replayed(tmp_path: Path) -> None:
    """Where a ledger was deleted, the run begins anew, even if the log of a killed driver's writes is still there."""
    file = tmp_path / "ledger.sqlite"
    with open_ledger(file, MACHINE, "a") as ledger:
        ledger.record_trials(0, [{"x": 1}])
        log = file.with_name("ledger.sqlite-wal").read_bytes()
    file.unlink()
    file.with_name("ledger.sqlite-wal").write_bytes(log)
    with open_ledger(file, MACHINE, "b") as ledger:
        assert not ledger.list_trials()
