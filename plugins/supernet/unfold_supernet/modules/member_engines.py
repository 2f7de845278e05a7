"""The members of a trained family, each in the engine that runs it: ONNX Runtime, or a view of the shared weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfold_supernet._types import Float32Array, Numbers, ShareModel, Task
from unfold_supernet.family.onnx_session import open_session
from unfold_supernet.networks.supernet import EscalationPair, Supernet
from unfold_supernet.scheduling.engines import EnginePlan
from unfold_supernet.scheduling.escalation import get_small_subnet
from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.training.latency import Model
from unfoldkit.api import RunDir
from unfoldkit.safe_io.files import decoding, parse_object

MEMBERS_FILE = "family/members.json"


@dataclass(frozen=True, slots=True)
class OnnxMember:
    """A member in ONNX Runtime; safe to call from many threads at once.

    Attributes:
        session: The session.
        has_extra: Whether the model takes extra numbers beside ``x``.
    """

    session: Any
    has_extra: bool = False

    def __call__(self, x: Tensor, extra: Tensor) -> Tensor:
        """Compute outputs (n, outputs) for inputs (n, *size) and extra numbers (n, extra)."""
        inputs = {"x": x.numpy()} | ({"extra": extra.numpy()} if self.has_extra else {})
        return torch.from_numpy(self.session.run(None, inputs)[0])


@dataclass(frozen=True, slots=True)
class BoundFamily:
    """The members of a run, each in its engine.

    Attributes:
        size: Shape of an input without rows.
        extra: Numbers beside an input.
        bound: The members by name: ONNX sessions, or views of shared weights.
    """

    size: tuple[int, ...]
    bound: Mapping[str, Model]
    extra: int = 0

    def select(self, name: str, fallback: str | None, threshold: float | None) -> Model:
        """Select a member, or with ``fallback`` the escalation pair of both."""
        small = self.bound[name]
        return small if fallback is None else EscalationPair(small, self.bound[fallback], threshold or 0.0)


def open_member(content: bytes) -> OnnxMember:
    """Open an ONNX model on one thread.

    Raises:
        ValueError: ONNX Runtime cannot load it.
    """
    session = open_session(content)
    return OnnxMember(session, any(item.name == "extra" for item in session.get_inputs()))


def write_members(directory: RunDir, size: tuple[int, ...], contents: Mapping[str, bytes], extra: int = 0) -> None:
    """Write ONNX models by name, and the list that names them last; ``extra`` counts numbers beside an input."""
    for name, content in contents.items():
        directory.write(locate_member(name), content)
    document = {"size": list(size), "members": list(contents)} | ({"extra": extra} if extra else {})
    directory.write(MEMBERS_FILE, (json.dumps(document) + "\n").encode())


def read_members(directory: RunDir) -> BoundFamily:
    """Open the members of a run.

    Raises:
        UnfoldError: A file is missing, was modified or is damaged.
    """
    with directory.decoding(MEMBERS_FILE, "a list of members") as content:
        document = parse_object(content)
        size, names = tuple(int(edge) for edge in document["size"]), [str(name) for name in document["members"]]
        extra = int(document.get("extra", 0))
    return BoundFamily(size, {name: read_member(directory, name) for name in names}, extra)


def bind_engines(supernet: Supernet, directory: RunDir, plan: EnginePlan) -> BoundFamily:
    """Bind each subnet of a space in the engine that a plan chose: a session of its ONNX model, or its views.

    Raises:
        UnfoldError: An ONNX model is missing, was modified or is damaged.
    """
    sessions = {name: read_member(directory, name) for name in plan.list_subnets("onnx")}
    space = supernet.space
    return BoundFamily((space.channels, *space.size), {**supernet.bound, **sessions})


def read_member(directory: RunDir, name: str) -> OnnxMember:
    """Open the ONNX model of a member.

    Raises:
        UnfoldError: The file is missing, was modified or is damaged.
    """
    file = locate_member(name)
    content = directory.read(file)
    with decoding(str(directory.path / file), "an ONNX model"):
        return open_member(content)


def locate_member(name: str) -> str:
    """Return where a run stores a member."""
    return f"subnets/{name}.onnx"


@dataclass(frozen=True, slots=True)
class TorchShares:
    """A subnet, a member or a pair of them; safe to call from many threads at once.

    Attributes:
        model: Computes the outputs.
        task: What they are.
    """

    model: Model
    task: Task = "classes"

    def __call__(self, x: Numbers, extra: Numbers) -> Float32Array:
        """Compute probabilities or values (n, outputs) for inputs (n, *size) and extra numbers (n, extra)."""
        with torch.inference_mode():
            outputs = self.model(*(torch.from_numpy(rows.astype(np.float32, copy=False)) for rows in (x, extra)))
            if self.task == "classes":
                outputs = torch.softmax(outputs, 1)
            elif self.task == "labels":
                outputs = torch.sigmoid(outputs)
        shares: Float32Array = outputs.numpy()
        return shares


def bind_shares(
    family: Supernet | BoundFamily,
    profiles: Sequence[SubnetProfile],
    threshold: float | None,
    task: Task = "classes",
) -> tuple[TorchShares, ...]:
    """Bind subnets and escalation pairs as models, on one thread of torch.

    Args:
        family: The subnets of a run.
        profiles: Which to bind; a pair names its fallback.
        threshold: Confidence below which a pair escalates.
        task: What the outputs are.
    """
    torch.set_num_threads(1)
    return tuple(
        TorchShares(family.select(get_small_subnet(profile), profile.fallback, threshold), task) for profile in profiles
    )


def split_pair(model: ShareModel) -> tuple[TorchShares, TorchShares]:
    """Split an escalation pair into its small and its large subnet.

    Raises:
        TypeError: The model is no pair.
    """
    if not isinstance(model, TorchShares) or not isinstance(model.model, EscalationPair):
        raise TypeError(f"{model!r} is not an escalation pair")
    return TorchShares(model.model.small), TorchShares(model.model.large)
