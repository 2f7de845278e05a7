"""The verb ``train``: one set of weights, every subnet measured, the cost of sharing, the cost of a switch."""

from __future__ import annotations

import importlib.util
import json

from unfold_supernet.family.names import ANSWERS, FRONT
from unfold_supernet.schema.models import SupernetSpec
from unfoldkit.api import Report, Run, fail


def train(spec: SupernetSpec, run: Run) -> Report:
    """Train the family, measure every subnet, and keep weights, statistics, front and extracted subnets in the run.

    Raises:
        UnfoldError: there is no space to train, torch is missing, or the data is at fault.
    """
    need_torch()
    if spec.space is None or spec.data is None:
        key = "layers" if spec.layers else "family"
        raise fail("this family is known by its layers only", key=key, hint="unfold plan; or write space and data")
    from unfold_supernet.family import checkpoint, handoff
    from unfold_supernet.family.datasets import load
    from unfold_supernet.networks.space import count, macs
    from unfold_supernet.scheduling import escalation
    from unfold_supernet.scheduling.policies import served
    from unfold_supernet.training import family, latency, subnet_search
    from unfold_supernet.training.report import Alone, Told, facts, report

    data = load(spec.data, run, form=spec.form)
    if count(spec.space) > spec.space.search.above:
        data = subnet_search.apart(data, spec.space.search, run.seed)
    trained = family.train_family(spec, data, run)
    net = trained.net
    said = family.answered(net, data)
    found = family.qualities(net, data, said)
    times: dict[str, dict[int, float]] = {}
    for name in found:
        run.progress("time nets", len(times), len(found))
        times[name] = latency.latencies(net.bound[name], data)
    run.progress("time nets", len(times), len(found))
    ordered = {one.name: one for one in sorted(net.space.subnets, key=lambda one: macs(net.space, one))}
    names = list(dict.fromkeys((next(iter(ordered)), list(ordered)[(len(ordered) - 1) // 2], list(ordered)[-1])))
    alone = {}
    if spec.training.alone:
        alone = {name: Alone(found[name], family.trained_alone(spec, data, run, ordered[name])) for name in names}
    for name in ordered:
        module = checkpoint.extract(net.space, net.bound[name])
        run.directory.write(f"subnets/{name}.safetensors", checkpoint.state_bytes(module))
        run.directory.write(f"subnets/{name}.onnx", checkpoint.onnx_bytes(net.space, module, data.names))
        run.directory.write(f"stages/{name}.onnx", handoff.rows_onnx(net.space, module, data.names))
    told = Told(
        spec,
        data,
        net.space,
        found,
        times,
        alone,
        latency.switching(net),
        trained.steps,
        trained.seconds,
        trained.searched,
    )
    run.directory.write(ANSWERS, escalation.packed(said))
    known = facts(told)
    run.directory.write(FRONT, (json.dumps(known) + "\n").encode())
    handoff.keep(run.directory, spec.name, data, [served(item) for item in known["nets"]], said)
    return report(told)


def need_torch() -> None:
    """Stop unless torch and safetensors are installed.

    Raises:
        UnfoldError: one of them is not (exit code 2, names the extra).
    """
    for name in ("torch", "safetensors"):
        if importlib.util.find_spec(name) is None:
            hint = "pip install 'unfoldkit[torch]'"
            raise fail(f"a family needs the package {name!r}, which is not installed", hint=hint)
