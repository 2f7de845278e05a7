"""Laws of the benchmark that serves a family under bursts."""

from __future__ import annotations

from statistics import median

import pytest

from benchmarks import supernet_serve
from benchmarks.supernet_serve import CALM, HIGH, REAL_SHARES, SPREADS, Profile, real, summary
from unfold_supernet.scheduling.policies import SubnetProfile, scale_latencies

NETS = (
    SubnetProfile("small", 80.0, ((1, 0.001), (64, 0.002))),
    SubnetProfile("middle", 85.0, ((1, 0.001), (64, 0.004))),
    SubnetProfile("big", 88.0, ((1, 0.002), (64, 0.008))),
    SubnetProfile("large", 90.0, ((1, 0.004), (64, 0.032))),
)


def profile(nets: tuple[SubnetProfile, ...] = NETS) -> Profile:
    """Return nets that answer nothing."""
    return Profile(nets, (), (), None, None, 0.1)


@pytest.mark.parametrize("pace", [0.1, 1.0])
def test_rates_are_shares_of_what_the_nets_take(pace: float) -> None:
    """On a machine of any speed the traces in real time ask the same shares of what its nets were measured to take."""
    nets = scale_latencies(NETS, pace)
    traces = real(profile(nets), 0)
    assert len(traces) == len(SPREADS) * 3 * len(REAL_SHARES)
    assert {round(trace.load, 6) for trace in traces} == {round(HIGH / part, 6) for part in (1, 2, 4)}
    for trace in traces:
        assert trace.calm == pytest.approx(CALM * 64 / (0.032 * pace))
        assert trace.high == pytest.approx(trace.load * 64 / (0.002 * pace))


def test_the_whole_grid_is_reported_with_its_median() -> None:
    """Every trace has a point for each way that it was played; the headline is the best of them, the median beside."""
    found = profile()
    traces = supernet_serve._traces(NETS, 0)[:4]
    rows = [row for trace in traces for row in supernet_serve._played(found, trace)]
    live = [row | {"how": how} for row in rows for how in ("measured", "foretold")]
    report = summary(found, traces, rows + live, [])
    points = report["tables"]["points"]
    assert [(one["trace"], one["how"]) for one in points] == [
        (trace.name, how) for trace in traces for how in ("simulated", "foretold", "measured")
    ]
    ratios = [one["ratio"] for one in points if one["how"] == "measured" and one["ratio"] is not None]
    assert report["metrics"]["attainment_ratio_measured"] == max(ratios, default=None)
    assert report["metrics"]["attainment_ratio_measured_median"] == (median(ratios) if ratios else None)
    assert report["metrics"]["attainment_off"] == 0


def test_the_note_on_gains_is_of_the_family_that_was_measured() -> None:
    """The note gives the spread of accuracies among the nets of this run, not of another family."""
    reached = [net.accuracy for net in NETS]
    notes = supernet_serve._notes(profile())
    assert f"which is {max(reached) - min(reached):.1f} points here" in notes[-1]
