"""The cheapest pools of prefill and decode engines that meet the targets: uniform-cost search over exact simulations.

Candidates are pairs of options with a token budget for prefill, and engines of each pool from rigorous bounds up. A
prefill pool is simulated once for all decode pools behind it.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field, replace

import numpy as np

from unfold_pipeline.engine.planner.bounds import bound_replicas, measure_peak_work
from unfold_pipeline.engine.planner.problem import (
    Disaggregation,
    EngineOption,
    EngineProblem,
    Targets,
    build_abort_targets,
    measure_latencies,
    percentile,
    reduce_targets,
)
from unfold_pipeline.engine.planner.search import (
    DEFAULT_BUDGET,
    EngineConfig,
    Progress,
    build_limits,
    list_latencies,
)
from unfold_pipeline.engine.simulation.cluster import EngineRun
from unfold_pipeline.engine.simulation.disaggregation import (
    DisaggregatedRun,
    EnginePool,
    KvTransfer,
    simulate_decode,
    simulate_prefill,
    size_transfers,
)

MAX_SIMULATIONS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """Engines of both pools."""

    prefill: EngineConfig
    decode: EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOutcome:
    """What two pools do on the trace: p99 in seconds at the client."""

    config: PoolConfig
    run: DisaggregatedRun
    ttft_s: float
    tpot_s: float
    latency_s: float

    def meets(self, problem: EngineProblem) -> bool:
        """Return whether every target is met."""
        return not self.run.aborted and problem.targets.are_met(self.ttft_s, self.tpot_s, self.latency_s)

    @property
    def transfer_p99_s(self) -> float:
        """The p99 time from the end of a prompt until its KV cache is complete on the decode engine."""
        return percentile(self.run.received_s - self.run.prefilled_s, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSolution:
    """The cheapest pools, or none.

    Attributes:
        outcome: The pools on the trace; ``None`` if no choice meets the targets.
        simulations: Simulations of a pool.
        is_complete: Whether no choice is cheaper; otherwise the search ended at its limit.
    """

    outcome: PoolOutcome | None
    simulations: int
    is_complete: bool


def count_shared_nodes(first: EngineOption, first_engines: int, second: EngineOption, second_engines: int) -> int:
    """Return the nodes, or GPUs rented one by one, of two pools on the same hardware, packed onto common nodes.

    The larger engines are placed first, which is optimal as their GPUs are a multiple of those of the smaller ones.
    """
    size, engines = first.gpus_per_node, {first.tensor_parallel: 0, second.tensor_parallel: 0}
    engines[first.tensor_parallel] += first_engines
    engines[second.tensor_parallel] += second_engines
    if size == 1:
        return sum(gpus * count for gpus, count in engines.items())
    large, small = max(engines), min(engines)
    per_node = max(1, size // large)
    nodes, unplaced = -(-engines[large] // per_node), 0
    if large != small:
        full_nodes, in_last_node = divmod(engines[large], per_node)
        room = full_nodes * ((size - per_node * large) // small)
        room += (size - in_last_node * large) // small if in_last_node else 0
        unplaced = max(0, engines[small] - room)
    return nodes + -(-unplaced // max(1, size // small))


def price_pools(problem: EngineProblem, config: PoolConfig) -> float:
    """Return the $/h of both pools; pools on the same hardware share nodes."""
    prefill, decode = problem.options[config.prefill.option], problem.options[config.decode.option]
    if prefill.hardware != decode.hardware:
        return prefill.cost(config.prefill.replicas) + decode.cost(config.decode.replicas)
    nodes = count_shared_nodes(prefill, config.prefill.replicas, decode, config.decode.replicas)
    return nodes * prefill.gpus_per_node * prefill.usd_per_gpu_hour


def count_pool_gpus(problem: EngineProblem, config: PoolConfig) -> int:
    """Count the GPUs of the prefill and decode engines together: tensor parallelism times replicas."""
    return sum(problem.options[part.option].tensor_parallel * part.replicas for part in (config.prefill, config.decode))


def build_transfer(problem: EngineProblem, disaggregation: Disaggregation, prefill: int, decode: int) -> KvTransfer:
    """Return the transfers between engines of two options: each GPU of a decode engine reads its heads."""
    fan_out = problem.options[decode].tensor_parallel // problem.options[prefill].tensor_parallel
    receive_bytes = float(disaggregation.kv_bytes[decode])
    return size_transfers(
        problem.requests,
        send_bytes=fan_out * receive_bytes,
        receive_bytes=receive_bytes,
        bytes_per_s=disaggregation.bytes_per_s,
        latency_s=disaggregation.latency_s,
    )


def evaluate_pools(problem: EngineProblem, disaggregation: Disaggregation, config: PoolConfig) -> PoolOutcome:
    """Simulate both pools to their end."""
    prefill = simulate_prefill(problem.requests, _build_pool(problem, config.prefill))
    transfer = build_transfer(problem, disaggregation, config.prefill.option, config.decode.option)
    run = simulate_decode(
        problem.requests, prefill, _build_pool(problem, config.decode), transfer, config.prefill.replicas
    )
    return _describe(problem, config, run)


def find_cheapest_pools(
    problem: EngineProblem, disaggregation: Disaggregation, progress: Progress | None = None
) -> PoolSolution:
    """Return the cheapest pools that meet the targets; of equal price, the fewest GPUs, then the default token budget.

    The decode engines have the largest token budget, which only recomputed prompts need, and the prefill engines the
    largest limit of running requests.
    """
    search = _PoolSearch(problem, disaggregation)
    search.open_pairs()
    while search.queue:
        if search.simulated > disaggregation.max_requests or search.simulations > MAX_SIMULATIONS:
            return PoolSolution(outcome=None, simulations=search.simulations, is_complete=False)
        outcome = search.try_candidate(heapq.heappop(search.queue))
        if outcome is not None:
            return PoolSolution(outcome=outcome, simulations=search.simulations, is_complete=True)
        if progress is not None:
            progress("pools", search.simulations, 0)
    return PoolSolution(outcome=None, simulations=search.simulations, is_complete=True)


Candidate = tuple[float, int, int, int, int, int]
"""Price, GPUs, index of the pair, index of the budget, prefill engines, decode engines."""


@dataclass(slots=True)
class _PoolSearch:
    """Candidates by price, and the prefill pools that were simulated."""

    problem: EngineProblem
    disaggregation: Disaggregation
    queue: list[Candidate] = field(default_factory=list)
    opened: set[tuple[int, int, int, int]] = field(default_factory=set)
    prompts: dict[tuple[int, int, int, int], EngineRun] = field(default_factory=dict)
    simulations: int = 0
    simulated: int = 0

    @property
    def budgets(self) -> tuple[int, ...]:
        """Token budgets of prefill engines, the default first."""
        return tuple(sorted(self.problem.settings.budgets, key=lambda budget: (budget != DEFAULT_BUDGET, budget)))

    def open_pairs(self) -> None:
        """Begin with the least engines of every pair."""
        peak, budget = measure_peak_work(self.problem, is_received=True), max(self.problem.settings.budgets)
        decode_bounds = {
            decode: bound_replicas(self.problem, self.problem.options[decode], budget, peak, is_received=True)
            for _, decode in self.disaggregation.pairs
        }
        for pair, (prefill, decode) in enumerate(self.disaggregation.pairs):
            prompts = self._build_prompt_problem(prefill, decode)
            prompt_peak = measure_peak_work(prompts)
            for position, budget in enumerate(self.budgets):
                bound = bound_replicas(prompts, self.problem.options[prefill], budget, prompt_peak)
                if not bound.obstacle and not decode_bounds[decode].obstacle:
                    self.push(pair, position, bound.replicas, decode_bounds[decode].replicas)

    def push(self, pair: int, position: int, prefill_engines: int, decode_engines: int) -> None:
        """Add a candidate within limits and quotas."""
        config = self._build_config(pair, position, prefill_engines, decode_engines)
        key = (pair, position, prefill_engines, decode_engines)
        if key not in self.opened and self._is_allowed(config):
            self.opened.add(key)
            cost, gpus = price_pools(self.problem, config), count_pool_gpus(self.problem, config)
            heapq.heappush(self.queue, (cost, gpus, *key))

    def try_candidate(self, candidate: Candidate) -> PoolOutcome | None:
        """Return the outcome of a candidate that meets the targets; otherwise add its larger neighbors."""
        _, _, pair, position, prefill_engines, decode_engines = candidate
        config = self._build_config(pair, position, prefill_engines, decode_engines)
        prompts = self._simulate_prompts(pair, position, config)
        if not prompts.aborted:
            for max_seqs in sorted(self.problem.settings.max_seqs, reverse=True):
                limited = replace(config, decode=replace(config.decode, max_seqs=max_seqs))
                outcome = self._simulate_decodes(limited, prompts)
                if outcome.meets(self.problem):
                    return outcome
            self.push(pair, position, prefill_engines, decode_engines + 1)
        self.push(pair, position, prefill_engines + 1, decode_engines)
        return None

    def _build_config(self, pair: int, position: int, prefill_engines: int, decode_engines: int) -> PoolConfig:
        prefill, decode = self.disaggregation.pairs[pair]
        settings = self.problem.settings
        slots = max(settings.max_seqs)
        return PoolConfig(
            prefill=EngineConfig(
                option=prefill, replicas=prefill_engines, budget=self.budgets[position], max_seqs=slots
            ),
            decode=EngineConfig(option=decode, replicas=decode_engines, budget=max(settings.budgets), max_seqs=slots),
        )

    def _is_allowed(self, config: PoolConfig) -> bool:
        limit, gpus = self.problem.settings.max_replicas, dict[str, int]()
        for part in (config.prefill, config.decode):
            option = self.problem.options[part.option]
            gpus[option.hardware] = gpus.get(option.hardware, 0) + part.replicas * option.tensor_parallel
            if part.replicas > limit or (option.quota is not None and gpus[option.hardware] > option.quota):
                return False
        return True

    def _build_prompt_problem(self, prefill: int, decode: int) -> EngineProblem:
        """Return the problem of the prefill engines alone: a token for each prompt, with time left for what follows."""
        targets, requests = reduce_targets(self.problem), self.problem.requests
        transfer = build_transfer(self.problem, self.disaggregation, prefill, decode)
        rest_s = float(transfer.send_s.min()) + transfer.latency_s
        return replace(
            self.problem,
            requests=replace(requests, output_tokens=np.ones_like(requests.output_tokens)),
            targets=Targets(ttft_s=min(targets.ttft_s, targets.latency_s) - rest_s),
            surroundings=None,
        )

    def _simulate_prompts(self, pair: int, position: int, config: PoolConfig) -> EngineRun:
        key = (*self.disaggregation.pairs[pair], position, config.prefill.replicas)
        if key not in self.prompts:
            prompts = self._build_prompt_problem(config.prefill.option, config.decode.option)
            targets = build_abort_targets(prompts)
            self.prompts[key] = simulate_prefill(
                self.problem.requests, _build_pool(self.problem, config.prefill), targets
            )
            self._count(self.prompts[key])
        return self.prompts[key]

    def _simulate_decodes(self, config: PoolConfig, prompts: EngineRun) -> PoolOutcome:
        transfer = build_transfer(self.problem, self.disaggregation, config.prefill.option, config.decode.option)
        # a request is late here only if it is late for the client, as prompt and transfer have taken at least that long
        spent_s = float(np.min(prompts.first_token_s - prompts.arrival_s + transfer.send_s)) + transfer.latency_s
        targets = build_abort_targets(self.problem)
        targets = replace(targets, ttft_s=targets.ttft_s - spent_s, latency_s=targets.latency_s - spent_s)
        pool = _build_pool(self.problem, config.decode)
        run = simulate_decode(self.problem.requests, prompts, pool, transfer, config.prefill.replicas, targets)
        self._count(run.decode)
        return _describe(self.problem, config, run)

    def _count(self, run: EngineRun) -> None:
        self.simulations += 1
        self.simulated += run.finished


def _build_pool(problem: EngineProblem, config: EngineConfig) -> EnginePool:
    option = problem.options[config.option]
    option = replace(option, kv_cache=option.kv_cache.keep_whole_context())
    limits = build_limits(problem, option, config.budget, config.max_seqs)
    return EnginePool(engines=config.replicas, limits=limits, times=option.times)


def _describe(problem: EngineProblem, config: PoolConfig, run: DisaggregatedRun) -> PoolOutcome:
    if run.aborted:
        return PoolOutcome(config=config, run=run, ttft_s=math.inf, tpot_s=math.inf, latency_s=math.inf)
    settings = problem.settings
    latencies = measure_latencies(problem.requests, run, settings.front_s, problem.surroundings)
    ttft_s, tpot_s, latency_s = (percentile(values, 0.99, settings.tail) for values in list_latencies(latencies))
    return PoolOutcome(config=config, run=run, ttft_s=ttft_s, tpot_s=tpot_s, latency_s=latency_s)
