"""Fresh samples of the requests of a trace: on which share of them engines meet their targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from unfold_pipeline.engine.planner.problem import EngineProblem
from unfold_pipeline.engine.simulation.workload import EngineRequests
from unfold_pipeline.estimator.fresh_samples import DRAWS, FreshShare
from unfold_pipeline.problem.sample import resample_block_rows

MIN_REQUESTS = 50
MIN_DRAWS = 8
MAX_TOKENS = 1e8
"""Generated tokens of all samples, which the simulation takes some seconds for."""


def resample_requests(requests: EngineRequests, rng: np.random.Generator) -> EngineRequests:
    """Return requests of the same span, resampled in blocks with their lengths and the prompts that they share.

    Copies of a request share what the request shares with others, and nothing else.
    """
    rows, arrival_s = resample_block_rows(requests.arrival_s, rng)
    chosen = requests.reorder(rows, arrival_s)
    uses = np.bincount(requests.content, minlength=requests.contents)
    own = np.flatnonzero(uses[chosen.content] == 1)
    content = chosen.content.copy()
    content[own] = requests.contents + np.arange(own.size)
    return replace(chosen, content=content, contents=requests.contents + own.size)


def measure_fresh_share(
    problem: EngineProblem, meets_targets: Callable[[EngineProblem], bool], seed: int
) -> FreshShare | None:
    """Return on how many fresh samples of its requests a problem's targets are met; ``None`` for few, or for a batch.

    Args:
        problem: what was planned, with the requests as they arrive at the first stage.
        meets_targets: simulates the plan on the requests of a problem.
        seed: seed of the samples.
    """
    requests = problem.requests
    if len(requests) < MIN_REQUESTS or requests.arrival_s[-1] <= requests.arrival_s[0]:
        return None
    draws = int(np.clip(MAX_TOKENS / max(1, int(requests.output_tokens.sum())), MIN_DRAWS, DRAWS))
    kept = 0
    for draw in range(draws):
        rng = np.random.default_rng([seed, 8, draw])
        # the trace is a draw itself: resampled twice, samples vary as two draws do from each other
        sample = resample_requests(resample_requests(requests, rng), rng)
        kept += meets_targets(replace(problem, requests=sample))
    return FreshShare(kept, draws)
