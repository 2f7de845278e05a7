"""The audit: its false alarms at the limit, its delay, and its state over restarts."""

from __future__ import annotations

import itertools
import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from unfold_cascade.language_models.gateway.audit import ALPHA, AT_START, AuditProcess, parse_audit, remaining_weight
from unfold_cascade.language_models.gateway.state import GatewayState
from unfoldkit.api import UnfoldError


def test_the_evidence_is_an_e_value_at_the_limit() -> None:
    """At the limit the evidence has mean 1 at a fixed time, and it reaches 1 / alpha in at most alpha of the runs."""
    rng = np.random.default_rng(2)
    values, revoked = [], 0
    for _ in range(300):
        audit = AuditProcess(0.02)
        for d in rng.choice([1.0, -1.0, 0.0], size=400, p=[0.05, 0.03, 0.92]):
            audit.observe(float(d))
        values.append(audit.evidence())
        revoked += audit.is_revoked
    assert np.mean(values) < 1.3
    assert revoked / 300 <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / 300)


@pytest.mark.parametrize("limit", [0.005, 0.02, 0.1])
@pytest.mark.parametrize("better", [0.0, 0.05])
def test_each_audit_keeps_the_expectation_of_the_evidence(limit: float, better: float) -> None:
    """From any state, one audit at the limit leaves the expected evidence as it is, later starts included."""
    rng = np.random.default_rng(int(1000 * limit))
    weights = {1.0: limit + better, -1.0: better, 0.0: 1.0 - limit - 2 * better}
    audit = AuditProcess(limit)
    for d in rng.choice(list(weights), size=120, p=list(weights.values())):
        before, document = audit.evidence(), audit.to_document()
        after = 0.0
        for value, weight in weights.items():
            branch = parse_audit(document)
            branch.observe(value)
            after += weight * branch.evidence()
        assert after == pytest.approx(before, rel=1e-12)
        audit.observe(float(d))


def test_the_weights_of_all_starts_add_up_to_one() -> None:
    """The first start has a quarter; the remainder falls to nothing, never below it."""
    assert (remaining_weight(0), remaining_weight(1)) == (1.0, 1.0 - AT_START)
    rest = [remaining_weight(t) for t in range(5000)]
    assert all(later < earlier for earlier, later in itertools.pairwise(rest))
    assert remaining_weight(10**9) < 1e-5


def test_a_broken_endpoint_is_found_soon_also_after_good_behaviour() -> None:
    """At 30 points of loss after 500 good audits, the median delay is below 100 audits."""
    delays = []
    for seed in range(20):
        rng, audit = np.random.default_rng(seed), AuditProcess(0.02)
        for _ in range(500):
            audit.observe(float(rng.random() < 0.005))
        while not audit.is_revoked:
            audit.observe(float(rng.random() < 0.3))
        delays.append(audit.audits - 500)
    assert np.median(delays) < 100


def test_the_state_survives_as_json() -> None:
    """A process that is stored and read goes on as if it had not stopped."""
    rng = np.random.default_rng(0)
    audit, other = AuditProcess(0.05), AuditProcess(0.05)
    for d in (rng.random(200) < 0.1).astype(float):
        audit.observe(d)
        other = parse_audit(json.loads(json.dumps(other.to_document())))
        other.observe(d)
    assert audit.evidence() == pytest.approx(other.evidence())
    with pytest.raises(ValueError, match="difference"):
        audit.observe(2.0)


def test_the_state_is_shared_and_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    """Two processes see one audit; repeated requests count once; another plan starts anew."""
    path = tmp_path / "gateway" / "state.sqlite"
    with closing(GatewayState(path, "plan", 0.02)) as first, closing(GatewayState(path, "plan", 0.02)) as second:
        for k in range(40):
            first.observe(f"r{k}", 1.0)
            second.observe(f"r{k}", 1.0)
        assert second.audit().audits == 40
    for plan, is_revoked in (("plan", True), ("other", False)):
        with closing(GatewayState(path, plan, 0.02)) as state:
            assert state.is_revoked == is_revoked
    broken = tmp_path / "b.sqlite"
    broken.write_bytes(b"not a database" * 100)
    with pytest.raises(UnfoldError, match="cannot be used"):
        GatewayState(broken, "plan", 0.02)


def test_money_of_a_killed_process_counts_as_spent(tmp_path: Path) -> None:
    """What was set aside by a process that is gone was perhaps charged."""
    path = tmp_path / "state.sqlite"
    state = GatewayState(path, "plan", None)
    assert state.reserve("a", 0.4, 1.0) is not None
    assert state.reserve("a", 0.7, 1.0) is None
    state.close()
    with closing(GatewayState(path, "plan", None)) as again:
        assert again.spent("a") == pytest.approx(0.4)
