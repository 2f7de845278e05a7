"""Stage candidates: learnt gates never hurt, owned cuts apply only where they matter, neighbours stay valid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unfold_cascade.temporal.data.features import PurchaseTerms
from unfold_cascade.temporal.models.training_sets import select_rows_in_stage
from unfold_cascade.temporal.problem import Transitions
from unfold_cascade.temporal.search.candidates import (
    CostBasis,
    find_buying_gates,
    learn_stage_gates,
    list_neighbours,
    search_stage,
    select_stage_hours,
    widen_free_gates,
)
from unfold_cascade.temporal.search.planner import SearchResult
from unfold_cascade.temporal.simulation.policy import StagePolicy
from unfold_cascade.temporal.simulation.trajectories import ModelScores


def test_learnt_gates_never_make_the_front_worse(search: SearchResult) -> None:
    """With soft gates and induction as additional starting points, no price of cost gets a worse candidate."""
    study, problem = search.study, search.problem
    cohort, stage = study.train, problem.stages[0]
    basis = CostBasis(study.call_costs, search.baselines.latched_quality.bill, problem.cost.by, Transitions())
    in_stage = select_rows_in_stage(cohort.highest, cohort.since, 0, is_parallel=False, fresh_h=stage.fresh_h)
    hours = select_stage_hours(cohort, 0, in_stage)
    gates = replace(problem.gates, learnt=("soft", "induction"))
    policies = list(learn_stage_gates(hours, study.stages[0], basis, gates))
    assert len(policies) == 2 * 4
    assert all(lo <= hi for policy in policies for lo, hi in policy.spans)
    exact, learnt = (search_stage(hours, study.stages[0], basis, options) for options in (problem.gates, gates))
    for price in (0.0, 0.1, 1.0):
        lowest = [min(candidate.loss + price * candidate.cost for candidate in front) for front in (exact, learnt)]
        assert lowest[1] <= lowest[0] + 0.01


def test_owned_cuts_exist_only_where_a_lasting_purchase_follows() -> None:
    """A gate has owned cuts if the next model reads a priced set that stays valid and is not available yet."""
    purchase = PurchaseTerms(
        ("monitor", "labs", "points", "gases"), np.array([1.0, 4.0, 0.0, 9.0]), np.array([0, 24.0, 5.0, 0])
    )
    scores = ModelScores(np.zeros((4, 1), dtype=np.float32), np.array([1, 3, 7, 15]), purchase)
    for chain, gates in (((0, 1, 2, 3), {0}), ((0, 3), {0}), ((1, 2), set()), ((2, 3), set()), ((0,), set())):
        assert find_buying_gates(scores, chain) == gates
        policy = StagePolicy(chain, ((0.4, 0.6),) * (len(chain) - 1), 0.5)
        for wide in widen_free_gates(policy, scores):
            assert {k for k in range(len(policy.spans)) if wide.owned[k] != policy.spans[k]} == gates
        assert bool(list(widen_free_gates(policy, scores))) == bool(gates)


def test_neighbours_shift_one_cut_and_keep_spans_ordered() -> None:
    """Gates without separate owned cuts keep both alike; separate ones are shifted on their own."""
    plain = StagePolicy((0, 1, 2), ((0.4, 0.6), (0.2, 0.9)), 0.5)
    separate = StagePolicy((0, 1, 2), ((0.4, 0.6), (0.2, 0.9)), 0.5, ((-np.inf, 0.8), (0.2, 0.9)))
    assert not any(neighbour.owned for neighbour in list_neighbours(plain))
    for neighbour in list_neighbours(separate):
        assert all(lo <= hi for lo, hi in (*neighbour.spans, *neighbour.owned))
        assert neighbour.owned[1] == neighbour.spans[1]
        assert neighbour.owned[0][0] == -np.inf
    moved = {
        (neighbour.owned[0] != separate.owned[0], neighbour.spans[0] != separate.spans[0])
        for neighbour in list_neighbours(separate)
    }
    assert moved == {(False, False), (True, False), (False, True)}
