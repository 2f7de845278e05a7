"""Speed-ups within and across instances."""

from __future__ import annotations

import pytest

from unfold_tuning.job.build import encode_profile, parse_profile
from unfold_tuning.job.problem import ProfiledTrial
from unfold_tuning.job.profile import LogNormal, Profile
from unfold_tuning.schema.profile import ProfileSpec

PROFILE = Profile(LogNormal(600.0), ((1, 1.0), (2, 1.9), (4, 3.6)), ((8, 6.9), (16, 13.0)))


@pytest.mark.parametrize(("accelerators", "expected"), [(1, (1, 8, 16)), (4, (1, 2, 4, 8, 16)), (8, (1, 2, 4, 16))])
def test_worker_counts_combine_both_tables(accelerators: int, expected: tuple[int, ...]) -> None:
    """Across instances only ``across`` counts, within one only ``speedup``: neither stands for the other."""
    assert PROFILE.list_worker_counts(accelerators) == expected
    other = Profile(LogNormal(1.0), ((1, 1.0), (4, 3.6)), ((4, 2.5),))
    assert (other.get_speedup(4, 4), other.get_speedup(4, 2)) == (3.6, 2.5)
    assert not PROFILE.has_speedup(2, 1)
    assert PROFILE.list_unmeasured_spans(1) == (2, 4)
    assert PROFILE.list_unmeasured_spans(4) == ()


def test_a_measured_profile_keeps_every_configuration() -> None:
    """A value of a space may be a list, a truth value, a whole number or nothing."""
    config = {"layers": [64, 32], "nesterov": True, "width": 16, "rate": 0.5, "name": "relu", "depth": None}
    trial = ProfiledTrial(ends=(1, 2), seconds=(2.0, 3.0), metrics=(0.1, 0.2), config=config)
    encoded = encode_profile(PROFILE, [trial])
    assert parse_profile(encoded) == PROFILE
    (kept,) = ProfileSpec.model_validate_json(encoded).trials
    assert [(name, type(value)) for name, value in kept.config.items() if name != "layers"] == [
        (name, type(value)) for name, value in config.items() if name != "layers"
    ]
    assert kept.config["layers"] == (64, 32)
