"""Resolves a spec, once: stages, profile, machines with their prices, trainable and cluster.

Besides the verbs, this is the only module that reads the spec; everything else takes what it returns.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unfold_tuning.job import schedule
from unfold_tuning.job.availability import AvailabilityLog, read_availability
from unfold_tuning.job.pace_record import PaceRecord
from unfold_tuning.job.paces import (
    build_measured_record,
    build_planned_features,
    build_recorded_pace,
    describe_hardware,
    read_history,
)
from unfold_tuning.job.problem import (
    BUNDLED_DATASETS,
    ClusterConfig,
    EarlyStopRules,
    LaunchConfig,
    MeasuredPaces,
    Mode,
    Problem,
    ProfiledTrial,
    TrainableConfig,
    score_metric,
)
from unfold_tuning.job.profile import LogNormal, Machine, Profile, SpotTerms, compute_log_sigma
from unfold_tuning.job.search_space import (
    Categorical,
    Conditional,
    Dimension,
    IntegerRange,
    LogIntegerRange,
    LogUniform,
    Uniform,
    sample_bracket_configs,
)
from unfold_tuning.job.trial_logs import TrialLog, TrialLogSource, read_trial_log, summarize_trial_log
from unfold_tuning.schema import search as search_schema
from unfold_tuning.schema import trainable as trainable_schema
from unfold_tuning.schema.cloud import Cloud, InstanceSpec
from unfold_tuning.schema.profile import MAX_VARIATION, Delay, Iteration, ProfileSpec, Recorded, check_profile
from unfold_tuning.schema.search import Search
from unfold_tuning.schema.tuning import TuningSpec
from unfoldkit.api import (
    Run,
    UnfoldError,
    dump,
    fingerprint,
    format_count,
    internal_error,
    require_packages,
    user_error,
)
from unfoldkit.catalog.aws import connect_clients, request_prices
from unfoldkit.catalog.billing import Billing
from unfoldkit.catalog.instances import Catalog, Instance, PriceBook
from unfoldkit.catalog.price_books import load_bundled_book, load_cached_book, load_catalog
from unfoldkit.catalog.price_lists import read_prices

GIB = 1024**3
PROFILE_FILE = "profile.json"
PROVISION_CV = 0.5
STARTUP_CV = 0.15
MAX_TRIAL_DRAWS = 20_000_000
"""Maximum trials of a stage times simulated runs: 160 MB for each of a dozen tables."""
MIN_SAMPLES = 1000
MIN_STEPS = 2
"""Steps of a recorded trial that show how its pace changes."""


def build_problem(spec: TuningSpec, run: Run) -> Problem:
    """Resolve everything that planning needs: records, price lists and the measured profile are read here.

    Raises:
        UnfoldError: A file cannot be read, a price is unknown, or there is no profile.
    """
    stages = build_stages(spec.search)
    resolved, record, log = resolve_record(spec, run)
    recorded = _build_recorded_paces(spec, log, run) if log else None
    spec = resolved
    profile_spec = _load_profile(spec, run)
    _require_same_hardware(spec.cloud, profile_spec.measured_on)
    return Problem(
        name=spec.name,
        stages=stages,
        machines=tuple(build_machines(spec.cloud, run)),
        profile=_build_profile(profile_spec),
        deadline_s=spec.deadline,
        budget_usd=spec.budget,
        confidence=spec.on_time,
        samples=limit_samples(spec.samples, stages),
        requested_samples=spec.samples,
        seed=run.seed,
        is_spread=spec.placement.spread is not None,
        trainable=build_trainable(spec.trainable) if spec.trainable else None,
        record=record,
        fingerprint=fingerprint_run(spec, run.seed),
        paces=recorded or _build_measured_paces(spec, profile_spec, stages, run),
        starts_on=_select_start(spec.cloud),
    )


def _select_start(cloud: Cloud) -> Literal["here", "ray", "elsewhere"]:
    if cloud.provider == "local":
        return "here"
    is_on_ray = cloud.provider in ("ray", "skypilot") or (cloud.provider == "aws" and cloud.launch is not None)
    return "ray" if is_on_ray else "elsewhere"


def limit_samples(samples: int, stages: Sequence[schedule.Stage]) -> int:
    """Limit the number of simulated runs so that the draws of the largest stage fit into memory."""
    return min(samples, max(MIN_SAMPLES, MAX_TRIAL_DRAWS // max(stage.trials for stage in stages)))


def build_stages(search: Search) -> tuple[schedule.Stage, ...]:
    """Build the stage table of a search."""
    if isinstance(search, search_schema.Halving):
        return schedule.build_successive_halving(search.trials, search.min_iters, search.max_iters, search.eta)
    if isinstance(search, search_schema.Hyperband):
        return schedule.build_hyperband(search.max_iters, search.eta, parallel=search.brackets == "parallel")
    if isinstance(search, search_schema.RandomSearch):
        return schedule.build_random_search(search.trials, search.iters)
    return schedule.build_custom_stages([(rung.trials, rung.iters) for rung in search.stages])


# profiles


def resolve_record(spec: TuningSpec, run: Run) -> tuple[TuningSpec, str, TrialLog | None]:
    """Replace the record of an earlier run by the times read from it.

    Returns:
        The spec, a one-line summary of the record (empty if there is none), and the record.

    Raises:
        UnfoldError: The record cannot be read, or lacks trials or times.
    """
    if spec.profile is None or spec.profile.recorded is None:
        return spec, "", None
    recorded, speedups = spec.profile.recorded, spec.profile.speedup
    if recorded.accelerators not in speedups:
        size = format_count(recorded.accelerators, "accelerator")
        message = f"the recorded trials had {size}, but profile.speedup has no such size"
        raise user_error(message, key="profile.recorded.accelerators", hint="write profile.speedup: {1: 1, 2: 1.9}")
    path = run.path(recorded.path, key="profile.recorded.path")
    log = read_trial_log(path, build_log_source(recorded))
    summary = summarize_trial_log(log, path)
    speedup = speedups[recorded.accelerators]
    iteration = Iteration.model_validate(
        {"mean": f"{summary.mean_s * speedup * 1000:.6f} ms", "std": f"{summary.std_s * speedup * 1000:.6f} ms"}
    )
    changes: dict[str, object] = {"iteration": iteration, "recorded": None}
    if "trial_spread" not in spec.profile.model_fields_set:
        changes["trial_spread"] = round(min(MAX_VARIATION, summary.trial_cv), 4)
    resolved = spec.model_copy(update={"profile": spec.profile.model_copy(update=changes)})
    longest = max(group.done + group.iters for stage in build_stages(spec.search) for group in stage.groups)
    return resolved, f"{recorded.path}, {summary.describe(longest)}", log


def build_log_source(recorded: Recorded) -> TrialLogSource:
    """Build the description of a record from the spec."""
    return TrialLogSource(
        path=recorded.path,
        trial=_to_names(recorded.trial),
        iteration=_to_names(recorded.iteration),
        elapsed=_to_names(recorded.elapsed),
        seconds=_to_names(recorded.seconds),
        unit=recorded.unit,
        iters=recorded.iters,
        where=dict(recorded.where),
    )


def _to_names(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names or ()


def _load_profile(spec: TuningSpec, run: Run) -> ProfileSpec:
    """Load the profile of the spec, or the one that ``unfold profile`` measured in this run folder."""
    if spec.profile is not None:
        return spec.profile
    if has_measured_profile(spec, run):
        with run.directory.decoding(PROFILE_FILE, "a profile") as data:
            profile = ProfileSpec.model_validate_json(data)
            for problem in check_profile(profile):
                raise ValueError(problem.message)
            if profile.iteration is None:
                raise ValueError("it names records instead of an iteration")
            return profile
    hint = "write profile: {iteration: {mean: 12 s}}" + (", or run unfold profile SPEC" if spec.trainable else "")
    message = "no profile: the duration of an iteration is unknown"
    if run.directory.has(PROFILE_FILE):
        message, hint = "the profile measured here is of another trainable or other nodes", "run unfold profile SPEC"
    raise user_error(message, key="profile", hint=hint)


def _require_same_hardware(cloud: Cloud, measured_on: str | None) -> None:
    """Require that a profile was measured on the planned hardware, unless a speed relates the two.

    Raises:
        UnfoldError: It was measured elsewhere, and an instance type has no ``speed``.
    """
    if measured_on is None:
        return
    for index, item in enumerate(cloud.instances):
        name, has_speed = (item, False) if isinstance(item, str) else (item.type, "speed" in item.model_fields_set)
        hardware = describe_hardware() if cloud.provider == "local" else name
        if has_speed and name == measured_on and not isinstance(item, str) and item.speed != 1.0:
            message = f"the profile was measured on {name} itself, so that its speed is 1, not {item.speed:g}"
            hint = "write the speeds of the other types relative to it"
            raise user_error(message, key=f"cloud.instances[{index}].speed", hint=hint)
        if hardware != measured_on and not has_speed:
            message = f"the profile was measured on {measured_on}, not on {hardware}"
            hint = f"measure it there, or write {{type: {name}, speed: 2}} if an accelerator is twice as fast there"
            raise user_error(message, key=f"cloud.instances[{index}]", hint=hint)


def _build_measured_paces(
    spec: TuningSpec, profile: ProfileSpec, stages: Sequence[schedule.Stage], run: Run
) -> MeasuredPaces | None:
    """Build the records of a profile's trials and of earlier jobs; ``None`` if the profile has no trials."""
    history = _read_histories(spec, profile.speedup, run)
    if not profile.trials:
        return None
    record = build_measured_record([(trial.ends, trial.seconds, trial.config) for trial in profile.trials])
    space = build_trainable(spec.trainable).space if spec.trainable else {}
    group = stages[0].groups[0]
    planned = sample_bracket_configs(space, run.seed, group.bracket, group.trials) if space else []
    return MeasuredPaces(
        profile=record,
        planned=build_planned_features(record, planned),
        history=history,
        measured_on=profile.measured_on or "",
    )


def _build_recorded_paces(spec: TuningSpec, log: TrialLog, run: Run) -> MeasuredPaces | None:
    """Build the paces of the recorded trials; ``None`` if no trial has two steps, which shows no change of pace.

    A ``trial_spread`` of the spec replaces the recorded one.

    Raises:
        UnfoldError: A record cannot be read.
    """
    if spec.profile is None or spec.profile.recorded is None:
        return None
    profile, item = spec.profile, spec.profile.recorded
    if all(len(steps) < MIN_STEPS for steps in log.steps.values()):
        return None
    is_given = "trial_spread" in profile.model_fields_set
    return MeasuredPaces(
        profile=build_recorded_pace(item.path, log.steps, profile.speedup.get(item.accelerators, 1.0)),
        planned=np.zeros((0, 0)),
        history=_read_histories(spec, profile.speedup, run),
        record_error=compute_log_sigma(profile.error),
        record_spread=compute_log_sigma(profile.trial_spread) if is_given else None,
    )


def _read_histories(spec: TuningSpec, speedups: Mapping[int, float], run: Run) -> tuple[PaceRecord, ...]:
    """Read every earlier job that the spec names, scaled to one accelerator.

    Raises:
        UnfoldError: A record cannot be read.
    """
    return tuple(
        read_history(
            run.path(item.path, key=f"history[{index}].path"),
            replace(build_log_source(item), key=f"history[{index}]"),
            speedups,
            item.accelerators,
        )
        for index, item in enumerate(spec.history)
    )


def has_measured_profile(spec: TuningSpec, run: Run) -> bool:
    """Return whether the run folder holds a measured profile that fits the spec."""
    return run.directory.has(PROFILE_FILE, made_from=fingerprint_profile_inputs(spec))


def parse_profile(data: bytes | str) -> Profile:
    """Parse a profile in the form of the spec's ``profile``, as JSON."""
    return _build_profile(ProfileSpec.model_validate_json(data))


def encode_profile(profile: Profile, trials: Sequence[ProfiledTrial] = (), measured_on: str = "") -> str:
    """Encode a measured profile in the form of the spec's ``profile``, as JSON."""
    encoded = {
        "iteration": _encode_time(profile.iteration),
        "speedup": {workers: round(speedup, 4) for workers, speedup in profile.speedup},
        "across": {workers: round(speedup, 4) for workers, speedup in profile.across} or None,
        "provision": _encode_time(profile.provision),
        "startup": _encode_time(profile.startup),
        "start": _encode_time(profile.start),
        "sync": _encode_time(profile.sync),
        "trial_spread": round(min(MAX_VARIATION, profile.trial_cv), 4),
        "error": profile.error_cv,
        "trials": [
            {
                "ends": trial.ends,
                "seconds": [round(max(seconds, 1e-9), 9) for seconds in trial.seconds],
                "config": dict(trial.config),
            }
            for trial in trials
        ],
    }
    return json.dumps(encoded | ({"measured_on": measured_on} if measured_on else {}), indent=1)


def _encode_time(time: LogNormal) -> dict[str, str]:
    return {"mean": f"{time.mean * 1000:.4f} ms", "std": f"{time.std * 1000:.4f} ms"}


def fingerprint_profile_inputs(spec: TuningSpec) -> str:
    """Fingerprint what determines measured times: the trainable, its checkpoints and the sizes of the nodes."""
    trainable = _dump_trainable(spec.trainable) if spec.trainable else {}
    sizes = [None if isinstance(item, str) else item.accelerators for item in spec.cloud.instances]
    return fingerprint(trainable, spec.cloud.checkpoint_iters, sizes)


def _dump_trainable(trainable: trainable_schema.Trainable) -> dict[str, Any]:
    """Dump a trainable without the rules that may be added to a run: a timeout, and the end of stragglers."""
    values = dump(trainable)
    values.pop("timeout", None)
    rules = values.get("early_stop", {})
    rules.pop("stragglers", None)
    if not rules.keys() & {"patience", "target"}:
        values.pop("early_stop", None)
    return values


def _build_profile(profile: ProfileSpec) -> Profile:
    if profile.iteration is None:
        raise internal_error("a recorded profile was not resolved")
    return Profile(
        iteration=LogNormal(profile.iteration.mean, profile.iteration.std),
        speedup=tuple(sorted(profile.speedup.items())),
        across=tuple(sorted((profile.across or {}).items())),
        provision=_build_delay(profile.provision, PROVISION_CV),
        startup=_build_delay(profile.startup, STARTUP_CV),
        start=_build_delay(profile.start, 0.0),
        sync=_build_delay(profile.sync, 0.0),
        trial_cv=profile.trial_spread,
        worker_cv=profile.worker_spread,
        error_cv=profile.error,
    )


def _build_delay(delay: float | Delay, default_cv: float) -> LogNormal:
    return LogNormal(delay.mean, delay.std) if isinstance(delay, Delay) else LogNormal(delay, delay * default_cv)


# machines


def build_machines(cloud: Cloud, run: Run) -> list[Machine]:
    """Build the machines that may be rented, one per instance type and market.

    Args:
        cloud: The spec's cloud.
        run: Resolves paths and names the price cache.

    Raises:
        UnfoldError: An instance type or its price is unknown.
    """
    known_prices = None if cloud.provider in ("local", "ray") else _load_catalog(cloud, run)
    if cloud.market == "thrifty":
        log = _load_availability(cloud, run)
        indices = range(len(cloud.instances))
        return [_build_thrifty_machine(cloud, index, known_prices, log) for index in indices]
    markets = {"on-demand": [False], "spot": [True], "either": [False, True]}[cloud.market]
    return [
        _build_machine(cloud, index, known_prices, is_spot=is_spot)
        for index in range(len(cloud.instances))
        for is_spot in markets
    ]


def _load_availability(cloud: Cloud, run: Run) -> AvailabilityLog | None:
    item = cloud.availability
    if item is None:
        return None
    path = run.path(item.path, key="cloud.availability.path")
    return read_availability(path, item.zones, item.tick, "cloud.availability.zones")


def _build_thrifty_machine(
    cloud: Cloud, index: int, known_prices: Catalog | None, log: AvailabilityLog | None
) -> Machine:
    """Build a machine at its on-demand price, with the terms of its spot market unless spot saves nothing."""
    on_demand, spot = (_build_machine(cloud, index, known_prices, is_spot=is_spot) for is_spot in (False, True))
    if spot.usd_per_hour >= on_demand.usd_per_hour:
        return on_demand
    terms = SpotTerms(spot.usd_per_hour, spot.interruptions_per_hour, log)
    source = f"{on_demand.price_source}; spot {spot.price_source}"
    return replace(on_demand, market="thrifty", spot=terms, price_source=source)


def _load_catalog(cloud: Cloud, run: Run) -> Catalog:
    books: list[PriceBook] = []
    if cloud.prices == "live":
        names = [item if isinstance(item, str) else item.type for item in cloud.instances]
        now = dt.datetime.now(dt.UTC)
        known_book = load_bundled_book(cloud.region)
        live = request_prices(connect_clients(cloud.region), cloud.region, names, now, known_book, cloud.zones)
        books.append(live.book)
    elif cloud.prices:
        books.append(read_prices(run.path(cloud.prices, key="cloud.prices"), cloud.region, cloud.zones))
    if not _has_aws_prices(cloud):
        return Catalog(tuple(books))
    cached_book = load_cached_book(Path(run.options["cache"]), cloud.region) if "cache" in run.options else None
    return load_catalog(cloud.region, *books, *([cached_book] if cached_book else []))


def _has_aws_prices(cloud: Cloud) -> bool:
    vendor = (cloud.infra or "*").split("/")[0]
    return cloud.provider == "aws" or (cloud.provider == "skypilot" and vendor in ("*", "aws"))


def _build_machine(cloud: Cloud, index: int, known_prices: Catalog | None, *, is_spot: bool) -> Machine:
    item, key = cloud.instances[index], f"cloud.instances[{index}]"
    spec = InstanceSpec(type=item) if isinstance(item, str) else item
    entry = _find_instance(spec, known_prices, key)
    spec_price = spec.spot if is_spot else spec.price
    price = spec_price if spec_price is not None else (entry.spot if is_spot else entry.on_demand)
    accelerators = spec.accelerators or entry.accelerators
    if price is None or not accelerators:
        market = ("spot price", "spot: $1/h") if is_spot else ("price", "price: $1/h")
        missing, value = market if price is None else ("number of accelerators", "accelerators: 1")
        refresh = ", or unfold catalog refresh" if _has_aws_prices(cloud) else ""
        hint = f"write {{type: {spec.type}, {value}}}{refresh}"
        raise user_error(f"the {missing} of {spec.type} in {cloud.region} is unknown", key=key, hint=hint)
    return Machine(
        name=spec.type,
        accelerators=accelerators,
        usd_per_hour=price + cloud.disk,
        speed=spec.speed,
        max_instances=cloud.limit,
        billing=Billing(cloud.billing.increment, cloud.billing.minimum, cloud.billing.per),
        ingress_usd=cloud.transfer * cloud.data / GIB,
        head_usd_per_hour=cloud.head,
        interruptions_per_hour=cloud.interruptions * 3600 if is_spot else 0.0,
        checkpoint_iters=cloud.checkpoint_iters,
        price_source="spec" if spec_price is not None else _describe_price_source(entry, is_spot=is_spot),
        market="spot" if is_spot else "on-demand",
    )


def _find_instance(spec: InstanceSpec, known_prices: Catalog | None, key: str) -> Instance:
    names = known_prices.names() if known_prices else []
    if known_prices is None or not names or (spec.accelerators and spec.type not in names):
        return Instance(spec.type)
    try:
        return known_prices.find(spec.type, price=spec.price)
    except UnfoldError as error:
        raise UnfoldError(*(replace(diagnostic, key=key) for diagnostic in error.diagnostics)) from error


def _describe_price_source(entry: Instance, *, is_spot: bool) -> str:
    derived = ", derived" if is_spot and entry.spot_derived else ""
    return f"{' '.join(entry.origin(spot=is_spot))}{derived}".strip()


# running a job


def resolve_trainable(spec: TuningSpec, run: Run) -> TrainableConfig:
    """Resolve what trials train, and check that it can be trained here.

    Raises:
        UnfoldError: There is no trainable, its data is missing, or the spec names code that is not allowed to run.
    """
    trainable = spec.trainable
    if trainable is None:
        raise user_error(
            "nothing to train", key="trainable", hint="write trainable: {estimator: xgboost, data: digits}"
        )
    if trainable.function is not None and not run.allow_code:
        raise user_error(
            f"the spec names code: {trainable.function}", key="trainable.function", hint="--allow-code runs it"
        )
    if trainable.estimator == "torch-mlp":
        require_packages("torch-mlp", "torch", key="trainable.estimator")
    config = build_trainable(trainable)
    if trainable.data in (None, *BUNDLED_DATASETS):
        return config
    return replace(config, data_path=run.path(str(trainable.data), key="trainable.data"))


def build_trainable(trainable: trainable_schema.Trainable) -> TrainableConfig:
    """Build the trainable's configuration; the path of its data is not resolved."""
    return TrainableConfig(
        estimator=trainable.estimator,
        function=trainable.function,
        data=trainable.data,
        target=trainable.target,
        columns=trainable.columns,
        group=trainable.group,
        metric=trainable.metric,
        mode=_select_mode(trainable),
        early_stop=_build_early_stop(trainable),
        rounds=trainable.rounds,
        timeout_s=trainable.timeout,
        span=trainable.span,
        space={name: _build_dimension(dimension) for name, dimension in trainable.space.items()},
    )


def _select_mode(trainable: trainable_schema.Trainable) -> Mode:
    """Select whether the metric is minimized: as the spec says, or as the metric of an estimator implies."""
    default = trainable_schema.ESTIMATOR_MODES[trainable.metric or "accuracy"] if trainable.estimator else "max"
    return trainable.mode or default


def _build_early_stop(trainable: trainable_schema.Trainable) -> EarlyStopRules:
    rules = trainable.early_stop
    if rules is None:
        return EarlyStopRules()
    target = None if rules.target is None else score_metric(rules.target, _select_mode(trainable))
    return EarlyStopRules(rules.patience, rules.min_delta, target, rules.stragglers)


def _build_dimension(dimension: trainable_schema.SpaceValue) -> Dimension:
    if not isinstance(dimension, trainable_schema.ConditionalModel):
        return Categorical(trainable_schema.list_values(dimension) or ())
    built = _build_range(dimension)
    conditions = tuple((parent, _list_admissible(value)) for parent, value in dimension.when.items())
    return Conditional(built, conditions) if conditions else built


def _build_range(dimension: trainable_schema.Dimension) -> Dimension:
    if isinstance(dimension, trainable_schema.Log):
        return LogUniform(*dimension.log)
    if isinstance(dimension, trainable_schema.Uniform):
        return Uniform(*dimension.uniform)
    if isinstance(dimension, trainable_schema.Integer):
        return IntegerRange(*dimension.int_)
    if isinstance(dimension, trainable_schema.LogInteger):
        return LogIntegerRange(*dimension.log_int)
    return Categorical(trainable_schema.list_values(dimension) or ())


def _list_admissible(value: trainable_schema.Value) -> tuple[trainable_schema.Value, ...]:
    """List the values that a condition admits: one, each of a list, or the list itself where values are lists."""
    return (*value, value) if isinstance(value, tuple) else (value,)


def build_cluster_config(spec: TuningSpec, run: Run) -> ClusterConfig:
    """Build the configuration of the cluster that runs a job."""
    launch = spec.cloud.launch
    return ClusterConfig(
        provider=spec.cloud.provider,
        region=spec.cloud.region,
        engine=run.engine.name,
        ray_address=getattr(run.engine, "address", None),
        launch=None
        if launch is None
        else LaunchConfig(
            image=launch.image,
            subnet=launch.subnet,
            security_groups=launch.security_groups,
            role=launch.role,
            setup=launch.setup,
            grace_s=launch.grace,
        ),
        is_spread=spec.placement.spread is not None,
        run_folder=run.directory.path,
        deadline_s=spec.deadline,
        zones=spec.cloud.zones,
        resource=spec.cloud.resource or "GPU",
        infra=spec.cloud.infra or f"*/{spec.cloud.region}",
    )


def fingerprint_run(spec: TuningSpec, seed: int) -> str:
    """Fingerprint a job without its deadline, budget and limits: runs with other ones continue each other."""
    job = dump(spec)
    job |= {"budget": None, "deadline": None, "cloud": {**job["cloud"], "limit": None, "zones": ()}}
    if spec.trainable is not None:
        job["trainable"] = _dump_trainable(spec.trainable)
    job.pop("history", None)
    return fingerprint(job, seed)
