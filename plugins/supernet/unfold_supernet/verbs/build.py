"""Resolve a spec, once: read its files and build the problems that the stages solve. Only ``verbs`` sees a spec."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_supernet.accelerator.hardware import Accelerator, EnergyModel, get_presets
from unfold_supernet.accelerator.layer_table import build_trained_family, read_layer_table
from unfold_supernet.accelerator.layers import Family
from unfold_supernet.accelerator.onnx_layers import read_onnx_layers
from unfold_supernet.accelerator.queries import QueryStream, draw_queries, read_queries
from unfold_supernet.accelerator.reference_families import build_reference_family
from unfold_supernet.family.artifacts import SupernetRecord, read_predictions, read_record, read_space
from unfold_supernet.family.datasets import DEFAULT_EDGE, DataOptions, Dataset, hold_out_rows, load_dataset
from unfold_supernet.family.space_builder import SpaceOptions, build_space
from unfold_supernet.family.target_leakage import find_leaks
from unfold_supernet.family.user_arrays import UserDataOptions
from unfold_supernet.members.files import MemberFile
from unfold_supernet.members.profile import MemberList, measure_members, read_members
from unfold_supernet.modules.problem import FitOptions, ModuleProblem, ModuleSource
from unfold_supernet.networks.space import Attention
from unfold_supernet.replay.problem import AcceleratorTarget, ReplayProblem, ServingOptions, select_candidates
from unfold_supernet.scheduling.engines import EnginePlan
from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.scheduling.requests import read_targets
from unfold_supernet.schema.accelerator import AcceleratorSpec, QueriesSpec
from unfold_supernet.schema.space import SearchSpec, SpaceSpec
from unfold_supernet.schema.supernet import GoalSpec, OnnxLayersSpec, ServingSpec, SupernetSpec
from unfold_supernet.schema.training import ClassWeights, DataSpec, TrainingSpec
from unfold_supernet.serving.loader import ServiceProblem
from unfold_supernet.study.study import QueryOptions, StudyProblem
from unfold_supernet.training.problem import SearchOptions, TrainingOptions, TrainingProblem
from unfold_supernet.training.verdict import Goal
from unfoldkit.api import Run, did_you_mean, dump, user_error
from unfoldkit.arrivals import traces
from unfoldkit.arrivals.readers.timestamps import TimeNotation
from unfoldkit.safe_io.files import read_bytes

MIN_GROUPS = 10
"""Groups in the training rows from which validation holds out whole groups."""
SGD_RATE = 0.1
MIN_TILES = 2
"""Tiles in the dynamic buffer: one is computed while the next is transferred."""


# Training.


def build_training_problem(spec: SupernetSpec, run: Run) -> TrainingProblem:
    """Load the data and build the search space.

    Raises:
        UnfoldError: The spec has no space or data, or a file is invalid.
    """
    if spec.members is not None:
        raise user_error("a list of models is served as it is", key="members", hint="unfold profile SPEC")
    if spec.space is None or spec.data is None:
        key = "layers" if spec.layers else "family"
        message, hint = "subnets known by their layers only cannot be trained", "unfold plan, or write space and data"
        raise user_error(message, key=key, hint=hint)
    data = load_dataset(build_data_options(spec.data, run), run.seed, form=spec.space.form)
    space = build_space(build_space_options(spec.space), data.shape)
    is_searched = spec.space.subnet_count > spec.space.search.above
    if is_searched:
        data = hold_out_rows(data, spec.space.search.held, run.seed)
    else:
        # with few groups, a whole one would cost the training more than its fraction
        data = hold_out_rows(data, spec.training.validation, run.seed, MIN_GROUPS)
    document = dump(spec)
    training = {key: value for key, value in document["training"].items() if key != "alone"}
    return TrainingProblem(
        name=spec.name,
        form=spec.space.form,
        space=space,
        data=data,
        is_searched=is_searched,
        options=build_training_options(spec.training),
        goal=build_goal(spec.goal),
        search=build_search_options(spec.space.search),
        seed=run.seed,
        fingerprint_parts=(document["data"], document["space"], training),
        leaks=find_leaks(data, run.seed),
    )


def build_module_problem(spec: SupernetSpec, run: Run) -> ModuleProblem:
    """Load the data and locate the user's module; nothing of it runs yet.

    Raises:
        UnfoldError: The spec may not name code, or a file is missing or invalid.
    """
    model = spec.model
    assert model is not None  # noqa: S101 - the caller checks
    if not run.allow_code:
        hint = "--allow-code permits it; only for specs that you trust"
        raise user_error(f"{model.source} is code, which a spec may not run", key="model.from", hint=hint)
    data = hold_out_rows(build_dataset(spec, run), spec.training.validation, run.seed, MIN_GROUPS)
    module, _, function = model.source.partition(":")
    weights = None if model.weights is None else run.path(model.weights, key="model.weights")
    document = dump(spec)
    training = {key: value for key, value in document["training"].items() if key != "alone"}
    # what only the exported models depend on trains nothing again
    architecture = {key: value for key, value in document["model"].items() if key != "max_int8_loss"}
    digest = hashlib.sha256(read_bytes(weights)).hexdigest() if weights else ""
    return ModuleProblem(
        name=spec.name,
        source=ModuleSource(
            module=module,
            function=function,
            folder=run.base.absolute(),
            arguments=dict(model.arguments),
            weights=weights,
        ),
        widths=model.widths,
        depths=model.depths,
        resolutions=model.resolutions,
        data=data,
        fit=build_fit_options(spec.training, data, run.seed),
        compares=spec.training.alone,
        threads=spec.training.threads,
        goal=build_goal(spec.goal),
        max_int8_loss=model.max_int8_loss,
        seed=run.seed,
        fingerprint_parts=(document["data"], architecture, training, digest),
        leaks=find_leaks(data, run.seed),
    )


def build_goal(spec: GoalSpec) -> Goal:
    """Resolve what the family must reach, in percent and points."""
    # the schema allows the key of the data's task only
    score = next((value for value in (spec.accuracy, spec.auroc, spec.r2) if value is not None), None)
    return Goal(None if score is None else score * 100, spec.max_sharing_cost)


def build_dataset(spec: SupernetSpec, run: Run) -> Dataset:
    """Load the examples of the spec.

    Raises:
        UnfoldError: A file is missing or invalid.
    """
    assert spec.data is not None  # noqa: S101 - the caller checks
    form = "module" if spec.model is not None else spec.space.form if spec.space is not None else ""
    return load_dataset(build_data_options(spec.data, run), run.seed, form=form)


def build_data_options(spec: DataSpec, run: Run) -> DataOptions:
    """Resolve where the examples come from."""
    return DataOptions(
        source=spec.source,
        path=None if spec.source == "digits" else run.path(spec.path or "", key="data.path"),
        user=UserDataOptions(
            targets=(spec.target,) if isinstance(spec.target, str) else spec.target,
            channels=spec.channels,
            group=spec.group or "",
            has_split=spec.split == "given",
            task=spec.task,
        ),
        split=spec.split,
        test_fraction=spec.test,
        edge=spec.image_size or DEFAULT_EDGE,
        # not the system's folder, which is often in memory
        scratch=run.directory.path if run.directory.path.is_dir() else None,
    )


def build_space_options(spec: SpaceSpec) -> SpaceOptions:
    """Resolve the dimensions of the search space."""
    attention = spec.attention
    return SpaceOptions(
        form=spec.form,
        widths=tuple(stage.width for stage in spec.stages),
        stem=(spec.stem.kernel, spec.stem.stride),
        attention=Attention(attention.patch, attention.width, attention.heads),
        expand=spec.expand,
        depth=spec.depth,
        kernel=spec.kernel,
        resolution=spec.resolution,
        stagewise=spec.scope == "stage",
        independent=spec.coupling == "independent",
    )


def build_training_options(spec: TrainingSpec) -> TrainingOptions:
    """Resolve how the supernet is trained."""
    return TrainingOptions(
        epochs=spec.epochs,
        rule=spec.rule,
        samples=spec.samples,
        distill=spec.distill or 0.0,
        delay=spec.delay,
        sort=spec.sort,
        batch=spec.batch,
        rate=spec.rate or SGD_RATE,
        warmup=spec.warmup,
        decay=spec.decay,
        clip=spec.clip,
        smoothing=spec.smoothing,
        noise=spec.noise,
        shift=spec.shift,
        calibrate=spec.calibrate,
        standalone=spec.alone,
        threads=spec.threads,
    )


def build_fit_options(spec: TrainingSpec, data: Dataset, seed: int) -> FitOptions:
    """Resolve how a user's module is trained on some data.

    Raises:
        UnfoldError: A class weight names no class.
    """
    default = FitOptions()
    return FitOptions(
        task=data.task,
        epochs=spec.epochs,
        batch=spec.batch,
        rate=default.rate if spec.rate is None else spec.rate,
        optimizer=spec.optimizer or default.optimizer,
        decay=spec.decay,
        distill=default.distill if spec.distill is None else spec.distill,
        clip=spec.clip,
        calibrate=spec.calibrate,
        class_weights=build_class_weights(spec.class_weights, data),
        seed=seed,
    )


def build_class_weights(weights: ClassWeights | None, data: Dataset) -> tuple[float, ...] | None:
    """Resolve the weight of each class in the loss; balanced weights make all classes count alike.

    Raises:
        UnfoldError: A weight names no class.
    """
    if weights is None:
        return None
    if weights == "balanced":
        counts = np.bincount(data.y[data.train], minlength=len(data.names))
        return tuple((len(data.train) / (len(counts) * np.maximum(counts, 1))).tolist())
    unknown = next((name for name in weights if name not in data.names), None)
    if unknown is not None:
        hint = did_you_mean(unknown, data.names)
        raise user_error(
            f"the data has no {'label' if data.task == 'labels' else 'class'} {unknown!r}",
            key="training.class_weights",
            hint=hint,
        )
    return tuple(float(weights.get(name, 1.0)) for name in data.names)


def build_search_options(spec: SearchSpec) -> SearchOptions:
    """Resolve how a large space is searched."""
    return SearchOptions(
        measured=spec.measured, points=spec.points, population=spec.population, generations=spec.generations
    )


# The accelerator study.


def build_study_problem(spec: SupernetSpec, run: Run) -> StudyProblem:
    """Build the family, the accelerator and the query stream.

    Raises:
        UnfoldError: A table is invalid, or the supernet is not trained yet.
    """
    accelerator = spec.accelerator or AcceleratorSpec()
    queries = spec.queries
    layers = spec.layers.onnx if isinstance(spec.layers, OnnxLayersSpec) else spec.layers
    return StudyProblem(
        name=spec.name,
        family=build_family(spec, run),
        is_reference=spec.family is not None,
        machine=build_machine(accelerator),
        stream=build_query_stream(queries, run),
        queries=QueryOptions(
            count=queries.count,
            pattern=queries.pattern,
            file=Path(queries.path).name if queries.path else "",
            policy=queries.policy,
            keep=queries.keep,
            every=queries.every,
            batch=queries.batch,
            deadline_s=queries.deadline,
        ),
        sizes=accelerator.sizes,
        has_default_sizes=accelerator.sizes == AcceleratorSpec().sizes,
        bandwidths=accelerator.bandwidths,
        inputs=_hash_files(run, {"queries.path": queries.path, "layers": layers}),
    )


def build_family(spec: SupernetSpec, run: Run) -> Family:
    """Build the subnets as layer tables: a published family, a user's table, or the supernet trained in this run.

    Raises:
        UnfoldError: The supernet is not trained yet, or the table is invalid.
    """
    if spec.family is not None:
        return build_reference_family(spec.family)
    if isinstance(spec.layers, OnnxLayersSpec):
        path = run.path(spec.layers.onnx, key="layers.onnx")
        return read_onnx_layers(path, spec.name, spec.layers.accuracy * 100)
    if spec.layers is not None:
        return read_layer_table(run.path(spec.layers, key="layers"), spec.name)
    if spec.model is not None:
        message = "the accelerator simulates layer tables and trained spaces, not a module of your own"
        raise user_error(message, key="model", hint="unfold plan SPEC --replay TRACE, or write layers: nets.csv")
    accuracies = {subnet.name: subnet.accuracy for subnet in read_record(run.directory).subnets}
    space = read_space(run.directory)
    return build_trained_family(spec.name, space, [accuracies[subnet.name] for subnet in space.subnets])


def build_machine(spec: AcceleratorSpec) -> Accelerator:
    """Build the accelerator: the preset with the values that the spec overrides."""
    overrides = {
        "persistent_bytes": spec.persistent_buffer,
        "dynamic_bytes": spec.dynamic_buffer,
        "streaming_bytes": spec.streaming_buffer,
        "clock_hz": spec.clock,
        "rows": spec.rows,
        "columns": spec.columns,
        "weight_bytes": spec.precision.weights and spec.precision.weights // 8,
        "value_bytes": spec.precision.maps and spec.precision.maps // 8,
    }
    present: dict[str, Any] = {key: value for key, value in overrides.items() if value is not None}
    energy = EnergyModel(spec.energy.mac, spec.energy.on_chip, spec.energy.off_chip, spec.energy.static)
    machine = replace(
        get_presets()[spec.preset], **present, bandwidth=spec.bandwidth, overlapped=spec.overlapped, energy=energy
    )
    return replace(machine, tile_bytes=min(machine.tile_bytes, machine.dynamic_bytes // MIN_TILES))


def build_query_stream(spec: QueriesSpec, run: Run) -> QueryStream:
    """Draw the queries, or read them from a table.

    Raises:
        UnfoldError: The file is missing or invalid.
    """
    if spec.path is None:
        return draw_queries(spec.count, spec.pattern, run.seed, spec.hold)
    return read_queries(run.path(spec.path, key="queries.path"), spec.policy)


def _hash_files(run: Run, files: Mapping[str, str | None]) -> dict[str, str]:
    """Compute the SHA-256 of each file by its name; ``files`` is by the key that names them."""
    paths = [run.path(name, key=key) for key, name in files.items() if name is not None]
    return {path.name: hashlib.sha256(read_bytes(path)).hexdigest() for path in paths}


# Serving.


def build_replay_problem(spec: SupernetSpec, run: Run) -> ReplayProblem:
    """Read the trace, its targets and the subnets of the run.

    Raises:
        UnfoldError: The supernet is not trained, no subnet meets the guard, or the trace has no duration.
    """
    options = build_serving_options(spec.serving)
    members = measure_members(build_member_list(spec, run), run.directory, run.progress) if spec.members else None
    path = Path(run.options["replay"])
    path = path if path.is_file() else run.path(str(path))
    arrivals = traces.read_trace(path, notation=TimeNotation(key=""), warn=run.log.warning)
    if len(arrivals) and arrivals[-1] <= arrivals[0]:
        message = f"all {len(arrivals):,} requests arrive at one instant, so the trace has no rate"
        raise user_error(message, file=str(path), hint="use a longer trace")
    targets = read_targets(path, arrivals.size, options.slo_s)
    record = None if spec.members else read_record(run.directory)
    engines = None if record is None else plan_engines(options, record)
    return ReplayProblem(
        name=spec.name,
        options=options,
        arrivals=arrivals,
        profiles=_select_profiles(options, run, engines) if members is None else members.profiles,
        # swapping is no baseline where the members are separate models
        switch_s=None if record is None else record.reload_s,
        seed=run.seed,
        targets=targets,
        accelerator=build_accelerator_target(spec, run) if options.backend == "accelerator" else None,
        costs=() if members is None else members.costs,
        memory_bytes=None if members is None else members.memory_bytes,
        delayed=() if members is None else members.delayed,
        engines=engines,
        task="classes" if record is None else record.task,
    )


def build_service_problem(spec: SupernetSpec, run: Run) -> ServiceProblem:
    """Read the measurements of the run and select the subnets to serve.

    Raises:
        UnfoldError: The supernet is not trained, or no subnet meets the guard.
    """
    members = read_members(build_member_list(spec, run), run.directory) if spec.members else None
    if members is None and spec.space is None and spec.model is None:
        message, hint = "subnets known by their layers only cannot be served", "write space and data, and train"
        raise user_error(message, key="family", hint=hint)
    options = build_serving_options(spec.serving)
    return ServiceProblem(
        name=spec.name,
        options=options,
        space_options=None if spec.space is None else build_space_options(spec.space),
        members=members,
        classes=read_record(run.directory).classes if members is None else members.classes,
        task=read_record(run.directory).task if members is None else "classes",
        profiles=_select_profiles(options, run, None) if members is None else members.profiles,
        record=read_record(run.directory) if members is None else None,
        directory=run.directory,
        clock=run.clock,
        log=run.log,
    )


def build_member_list(spec: SupernetSpec, run: Run) -> MemberList:
    """Locate the files of the members; nothing is read yet.

    Raises:
        UnfoldError: A file is missing.
    """
    assert spec.members is not None  # noqa: S101 - the caller checks
    files = [
        MemberFile(
            name=member.label,
            path=run.path(member.path, key=f"members[{index}].path"),
            accuracy=member.accuracy * 100,
            key=f"members[{index}]",
        )
        for index, member in enumerate(spec.members)
    ]
    memory_bytes = spec.serving.memory if spec.serving else None
    return MemberList(name=spec.name, files=tuple(files), classes=spec.classes or (), memory_bytes=memory_bytes)


def build_serving_options(spec: ServingSpec | None) -> ServingOptions:
    """Resolve how requests are served.

    Raises:
        UnfoldError: The spec has no section ``serving``.
    """
    if spec is None:
        raise user_error("the spec has no deadline", key="serving", hint='write serving: {slo: "20 ms"}')
    return ServingOptions(
        slo_s=spec.slo,
        policy=spec.policy,
        backend=spec.on,
        load=spec.load,
        min_attainment=spec.attainment,
        escalate_below=spec.escalate,
        guard=dict(spec.guard),
        engine=spec.engine,
        memory_bytes=spec.memory,
    )


def build_accelerator_target(spec: SupernetSpec, run: Run) -> AcceleratorTarget:
    """Build the accelerator that serves a replay."""
    machine = build_machine(spec.accelerator or AcceleratorSpec())
    return AcceleratorTarget(build_family(spec, run), machine, spec.queries.policy, spec.queries.keep)


def plan_engines(options: ServingOptions, record: SupernetRecord) -> EnginePlan | None:
    """Plan the engine of each subnet from what training measured; ``None`` where there is no choice."""
    if not record.has_engines or options.backend == "accelerator":
        return None
    return options.plan_engines({subnet.name: subnet.costs for subnet in record.subnets}, record.shared_bytes)


def _select_profiles(options: ServingOptions, run: Run, engines: EnginePlan | None) -> tuple[SubnetProfile, ...]:
    record = read_record(run.directory)
    record = record if engines is None else record.use_engines(engines)
    needs_predictions = options.escalate_below is not None and len(record.subnets) > 1
    tested = read_predictions(run.directory) if needs_predictions else None
    return select_candidates(options, record, tested)
