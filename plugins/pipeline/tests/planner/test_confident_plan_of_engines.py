"""Fresh samples of the requests of a trace: lengths and shared prompts are kept, and a lucky plan is found out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from unfold_pipeline._types import CountArray
from unfold_pipeline.engine.simulation.workload import EngineRequests, build_requests
from unfold_pipeline.planner.confident_plan import resample_requests

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
    fresh = resample_requests(requests, np.random.default_rng(seed))
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
    fresh = resample_requests(requests, np.random.default_rng(0))
    common = requests.list_contents()[:4]
    holders = [content for content in list_contents(fresh) if content.size >= 4 and (content[:4] == common).all()]
    assert len(holders) / len(fresh) == pytest.approx(2 / 3, abs=0.15)
    later = np.concatenate([content[4:] for content in holders])
    assert np.unique(later).size == later.size
