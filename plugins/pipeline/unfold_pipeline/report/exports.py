"""A plan in the words of other servers: Ray Serve's config, KServe's resources, Triton's model repository."""

from __future__ import annotations

import io
import itertools
import keyword
import logging
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unfold_pipeline.schema.models import FromRun, PipelineSpec, StageSpec
from unfold_pipeline.schema.placement import words
from unfoldkit.api import Report, fail
from unfoldkit.io.yaml12 import to_yaml
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

LONG_AGO = (1980, 1, 1, 0, 0, 0)
FORMATS = {".onnx": "onnx", ".ubj": "xgboost", ".json": "xgboost", ".skops": "sklearn"}
BACKENDS = {".onnx": "onnxruntime", ".ubj": "fil", ".json": "fil"}


@dataclass(frozen=True, slots=True)
class Planned:
    """A stage with what the plan says of it; ``label`` is its name in Kubernetes, which no other stage has."""

    name: str
    label: str
    spec: StageSpec
    hardware: str
    instance: str
    batch: int
    replicas: int

    @property
    def folder(self) -> str:
        """Its name in Triton's repository: its own if that can be a folder there, else that in Kubernetes."""
        return self.name if re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII) else self.label

    @property
    def suffix(self) -> str:
        """The ending of the model's file, empty if it is none."""
        file = self.spec.model.file if self.spec.model else None
        return f".{file.rpartition('.')[2]}" if file else ""


def ray_serve(report: Report) -> str:
    """Return a config for ``serve deploy``: an application a stage, its model in ``args``, placed as in the spec."""
    stages, placing = planned(report), _spec(report).placement
    apps = [_application(report.name, item, words(placing, item.replicas)) for item in stages]
    return str(to_yaml({"applications": apps}))


def _application(pipeline: str, item: Planned, placed: Mapping[str, Any]) -> dict[str, Any]:
    args: dict[str, Any] = {"name": item.name, "batch": item.batch, "wait": item.spec.wait}
    counts = {"name": item.name, "num_replicas": item.replicas, "max_ongoing_requests": 2 * item.batch}
    return {
        "name": f"{pipeline}-{item.name}",
        "route_prefix": f"/{item.name}",
        "import_path": "unfold_pipeline.runtime.ray_serve:application",
        "args": args | _source(item),
        "deployments": [{**counts, **placed}],
    }


def kserve(report: Report) -> str:
    """Return an InferenceService a stage, and the InferenceGraph that joins them.

    A flow that not every query takes has a condition: the answer of the stage names the next one as ``next``. What an
    InferenceGraph cannot say stands in comments at the head, and is logged.

    Raises:
        UnfoldError: the pipeline has a join, which an InferenceGraph does not know.
    """
    stages = planned(report)
    for item in stages:
        if len(item.spec.after) > 1:
            raise fail(f"an InferenceGraph has no joins, and {item.name} is one", key=f"stages.{item.name}.after")
    documents = [*map(_service, stages), _graph(report.name, stages)]
    notes = list(_notes(stages))
    for note in notes:
        logging.getLogger("unfoldkit").warning("kserve: %s", note)
    return "".join(f"# {note}\n" for note in notes) + "---\n".join(str(to_yaml(document)) for document in documents)


def _notes(stages: list[Planned]) -> Iterator[str]:
    """Say what an InferenceGraph cannot: its router looks at conditions after a step, not at the head of branches."""
    for item in stages:
        beside = [other for other in stages if set(other.spec.after) == set(item.spec.after)]
        share = min(item.spec.after.values(), default=item.spec.share)
        if share < 1 and (not item.spec.after or len(beside) > 1):
            yield f"{item.name} is planned for {share:.3g} of the queries: an Ensemble or root sends it all of them"
        if item.spec.fan_out != 1:
            told = f"{item.name} is planned for {item.spec.fan_out:g} items of a query"
            yield f"{told}: a graph sends one request, so the stage before must put them into one batch"
        if item.label != _label(item.name):
            yield f"{item.name} is called {item.label}, as {_label(item.name)} is taken"


def triton(report: Report) -> bytes:
    """Return a model repository as a zip: ``STAGE/config.pbtxt`` for each stage, to be completed with the models."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for item in planned(report):
            # a date of today would make the same plan another file
            archive.writestr(zipfile.ZipInfo(f"{item.folder}/config.pbtxt", LONG_AGO), pbtxt(item))
    return buffer.getvalue()


def pbtxt(item: Planned) -> str:
    """Return Triton's configuration of one stage."""
    delay = round(item.spec.wait * 1e6)
    return (
        f'name: "{item.folder}"\nbackend: "{BACKENDS.get(item.suffix, "python")}"\nmax_batch_size: {item.batch}\n'
        f"dynamic_batching {{ max_queue_delay_microseconds: {delay} }}\n"
        f"instance_group [ {{ count: {item.replicas} kind: KIND_AUTO }} ]\n"
    )


def planned(report: Report) -> list[Planned]:
    """Return the stages of a report's plan.

    Raises:
        UnfoldError: it is of another kind, there is no plan in it, or its stages stand in the run of a cascade.
    """
    stages: Mapping[str, Any] = (report.decision or {}).get("stages", {})
    if report.kind != "pipeline" or not stages or "spec" not in report.provenance:
        raise fail("there is no plan of a pipeline to export", hint="unfold plan SPEC --format ray-serve")
    spec = _spec(report)
    if isinstance(spec.stages, FromRun):
        hint = f"unfold serve {spec.stages.run} serves the cascade"
        raise fail("the models of a cascade's run cannot be exported as a pipeline", key="stages.from", hint=hint)
    named = labels(spec.named)
    return [_planned(name, named[name], spec, stages[name]) for name in spec.named]


def _spec(report: Report) -> PipelineSpec:
    return validate(PipelineSpec, parse(str(to_yaml(report.provenance["spec"])), "the plan"))


def _planned(name: str, label: str, spec: PipelineSpec, chosen: Mapping[str, Any]) -> Planned:
    hardware = spec.hardware[chosen["hardware"]]
    instance = "" if hardware.price is not None else hardware.instance or chosen["hardware"]
    return Planned(name, label, spec.named[name], chosen["hardware"], instance, chosen["batch"], chosen["replicas"])


def _source(item: Planned) -> dict[str, Any]:
    """A stage without a model is taken for a function of its name, as Python can say it, in a module ``models``."""
    model = item.spec.model
    if model is not None and model.file is not None:
        return {"path": model.file}
    return {"code": model.code if model is not None and model.code else f"models:{_function(item.name)}"}


def _service(item: Planned) -> dict[str, Any]:
    predictor: dict[str, Any] = {
        "minReplicas": item.replicas,
        "maxReplicas": item.replicas,
        "batcher": {"maxBatchSize": item.batch, "maxLatency": max(1, round(item.spec.wait * 1e3))},
    }
    if item.suffix in FORMATS:
        storage = f"pvc://models/{item.name}"
        predictor["model"] = {"modelFormat": {"name": FORMATS[item.suffix]}, "storageUri": storage}
    else:
        predictor["containers"] = [{"name": "kserve-container", "image": f"{item.label}:latest"}]
    if item.instance:
        predictor["nodeSelector"] = {"node.kubernetes.io/instance-type": item.instance}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": item.label, "labels": {"unfoldkit/hardware": _value(item.hardware)}},
        "spec": {"predictor": predictor},
    }


def _graph(name: str, stages: list[Planned]) -> dict[str, Any]:
    nodes = {"root": _parallel([item for item in stages if not item.spec.after], "")}
    for item in stages:
        nodes[item.label] = _sequence(item, stages)
        below = _children(item, stages)
        if len(below) > 1:
            nodes[f"{item.label}-next"] = _parallel(below, item.name)
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {"name": _label(name)},
        "spec": {"nodes": nodes},
    }


def _parallel(items: list[Planned], parent: str) -> dict[str, Any]:
    router = "Ensemble" if len(items) > 1 else "Sequence"
    # a condition of the first step of a sequence has no answer to look at, and KServe fails there
    steps = [dict(_step(item, parent, conditional=len(items) > 1)) for item in items]
    return {"routerType": router, "steps": steps}


def _step(item: Planned, parent: str, *, conditional: bool = True) -> Iterator[tuple[str, str]]:
    yield "name", item.label
    yield "nodeName", item.label
    if (item.spec.after[parent] if parent else item.spec.share) < 1 and conditional:
        yield "condition", f"[@this].#(next=={_quoted(item.name)})"


def _sequence(item: Planned, stages: list[Planned]) -> dict[str, Any]:
    steps: list[dict[str, str]] = [{"name": "self", "serviceName": item.label, "data": "$request"}]
    below = _children(item, stages)
    if len(below) == 1:
        steps.append({**dict(_step(below[0], item.name)), "data": "$response"})
    elif below:
        steps.append({"name": "next", "nodeName": f"{item.label}-next", "data": "$response"})
    return {"routerType": "Sequence", "steps": steps}


def _children(item: Planned, stages: list[Planned]) -> list[Planned]:
    return [other for other in stages if item.name in other.spec.after]


def labels(names: Iterable[str]) -> dict[str, str]:
    """Return the names that Kubernetes takes, each once; one that is taken already gets a number."""
    taken, found = {"root"}, {}
    # a name that needs no change keeps it
    for name in sorted(names, key=lambda item: item != _label(item)):
        tries = (f"{_label(name)}-{count}" for count in itertools.count(2))
        label = next(item for item in itertools.chain((_label(name),), tries) if not {item, f"{item}-next"} & taken)
        taken |= {label, f"{label}-next"}
        found[name] = label
    return found


def _label(name: str) -> str:
    """Return a name that Kubernetes takes."""
    plain = re.sub(r"[^a-z0-9-]+", "-", name.lower())[:50].strip("-")
    return plain if plain[:1].isalpha() else f"stage-{plain}".strip("-")


def _value(name: str) -> str:
    """Return a name as the value of a label: letters, digits, ``-``, ``_`` and ``.``, the first two at its ends."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:63].strip("-_.")


def _quoted(name: str) -> str:
    """Return a name as text in a condition of GJSON."""
    plain = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{plain}"'


def _function(name: str) -> str:
    """Return a name that a function of Python can have."""
    plain = re.sub(r"\W", "_", name)
    return plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"stage_{plain}"
