"""Fresh samples of the requests of a trace: lengths and shared prompts are kept, and a lucky plan is found out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from unfold_pipeline._types import CountArray
from unfold_pipeline.engine.simulation.workload import EngineRequests, build_requests
from unfold_pipeline.planner.confident_plan import copy_requests, draw_fresh_requests
from unfold_pipeline.problem.sample import resample_block_rows

COUNT = 400


def build(*, shared: bool) -> EngineRequests:
    rng = np.random.default_rng(3)
    prompt = rng.integers(64, 640, COUNT)
    return build_requests(
        np.cumsum(rng.exponential(0.2, COUNT)),
        prompt,
        rng.integers(1, 200, COUNT),
        shared_tokens=np.minimum(prompt, 64) if shared else None,
        shared_with=np.where(np.arange(COUNT) % 3, 0, -1) if shared else None,
    )


def list_contents(requests: EngineRequests) -> list[CountArray]:
    return [requests.list_contents()[begin:end] for begin, end in itertools.pairwise(requests.first_content)]


@pytest.mark.parametrize("seed", range(5))
def test_a_fresh_sample_has_requests_of_the_trace(seed: int) -> None:
    """Each request is one of the trace, arrivals ascend over the same span, and no two prompts become equal."""
    requests = build(shared=False)
    fresh = draw_fresh_requests(requests, np.random.default_rng(seed))
    pairs = set(zip(requests.input_tokens.tolist(), requests.output_tokens.tolist(), strict=True))
    assert set(zip(fresh.input_tokens.tolist(), fresh.output_tokens.tolist(), strict=True)) <= pairs
    assert (np.diff(fresh.arrival_s) >= 0).all()
    assert fresh.arrival_s[-1] == pytest.approx(requests.arrival_s[-1], rel=0.1)
    assert len(fresh) == pytest.approx(COUNT, rel=0.25)
    contents = fresh.list_contents()
    assert np.unique(contents).size == contents.size == fresh.first_content[-1]
    assert contents.max() < fresh.contents


def test_shared_prompts_stay_shared() -> None:
    """The first blocks that a third of the requests share are shared by their copies, and later blocks are not."""
    requests = build(shared=True)
    fresh = draw_fresh_requests(requests, np.random.default_rng(0))
    common = requests.list_contents()[:4]
    holders = [content for content in list_contents(fresh) if content.size >= 4 and (content[:4] == common).all()]
    assert len(holders) / len(fresh) == pytest.approx(2 / 3, abs=0.15)
    later = np.concatenate([content[4:] for content in holders])
    assert np.unique(later).size == later.size


def test_requests_in_batches_vary_by_more_than_in_two_resamples() -> None:
    """Blocks of fresh samples have more or fewer requests than any block of the trace."""
    ratios = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        sizes = rng.geometric(1 / 10, 100)
        arrival_s = np.sort(np.repeat(rng.uniform(0.0, 100.0, sizes.size), sizes) + rng.uniform(0.0, 0.05, sizes.sum()))
        ones = np.ones(arrival_s.size, dtype=np.int64)
        requests = build_requests(arrival_s - arrival_s[0], ones, ones)
        draws = [np.random.default_rng([1, draw]) for draw in range(100)]
        fresh = [len(draw_fresh_requests(requests, draw)) for draw in draws]
        resampled = [len(copy_requests(requests, *resample_block_rows(requests.arrival_s, draw))) for draw in draws]
        ratios.append(np.std(fresh) / np.std(resampled))
    assert np.mean(ratios) > 1.05 * np.sqrt(2)
