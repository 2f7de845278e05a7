"""What the service runs of a trained family: subnets, ONNX members and their pairs as models of plain arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unfold_supernet._types import Float32Array, ShareModel
from unfold_supernet.members.runtime import open_session
from unfold_supernet.networks.supernet import EscalationPair, Supernet
from unfold_supernet.scheduling.escalation import get_small_subnet
from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.training.latency import Model
from unfoldkit.api import RunDir
from unfoldkit.safe_io.files import decoding, parse_object

MEMBERS_FILE = "family/members.json"


@dataclass(frozen=True, slots=True)
class OnnxMember:
    """A member in ONNX Runtime; safe to call from many threads at once."""

    session: Any

    def __call__(self, x: Tensor, extra: Tensor) -> Tensor:
        """Compute logits (n, classes) for inputs (n, *size); ``extra`` is empty."""
        del extra
        return torch.from_numpy(self.session.run(None, {"x": x.numpy()})[0])


@dataclass(frozen=True, slots=True)
class OnnxFamily:
    """The members of a module's run.

    Attributes:
        size: Shape of an input without rows.
        bound: The members by name.
    """

    size: tuple[int, ...]
    bound: Mapping[str, OnnxMember]

    def select(self, name: str, fallback: str | None, threshold: float | None) -> OnnxMember | EscalationPair:
        """Select a member, or with ``fallback`` the escalation pair of both."""
        small = self.bound[name]
        return small if fallback is None else EscalationPair(small, self.bound[fallback], threshold or 0.0)


def open_member(content: bytes) -> OnnxMember:
    """Open an ONNX model on one thread.

    Raises:
        ValueError: ONNX Runtime cannot load it.
    """
    return OnnxMember(open_session(content))


def write_members(directory: RunDir, size: tuple[int, ...], contents: Mapping[str, bytes]) -> None:
    """Write ONNX models by name, and the list that names them last."""
    for name, content in contents.items():
        directory.write(locate_member(name), content)
    document = {"size": list(size), "members": list(contents)}
    directory.write(MEMBERS_FILE, (json.dumps(document) + "\n").encode())


def read_members(directory: RunDir) -> OnnxFamily:
    """Open the members of a run.

    Raises:
        UnfoldError: A file is missing, was modified or is damaged.
    """
    with directory.decoding(MEMBERS_FILE, "a list of members") as content:
        document = parse_object(content)
        size, names = tuple(int(edge) for edge in document["size"]), [str(name) for name in document["members"]]
    bound = {}
    for name in names:
        file = locate_member(name)
        content = directory.read(file)
        with decoding(str(directory.path / file), "an ONNX model"):
            bound[name] = open_member(content)
    return OnnxFamily(size, bound)


def locate_member(name: str) -> str:
    """Return where a run stores a member."""
    return f"subnets/{name}.onnx"


@dataclass(frozen=True, slots=True)
class TorchShares:
    """A subnet, a member or a pair of them; safe to call from many threads at once."""

    model: Model

    def __call__(self, x: Float32Array, extra: Float32Array) -> Float32Array:
        """Compute probabilities (n, classes) for inputs (n, *size) and extra numbers (n, extra)."""
        with torch.inference_mode():
            shares: Float32Array = torch.softmax(self.model(torch.from_numpy(x), torch.from_numpy(extra)), 1).numpy()
        return shares


def bind_shares(
    family: Supernet | OnnxFamily, profiles: Sequence[SubnetProfile], threshold: float | None
) -> tuple[TorchShares, ...]:
    """Bind subnets and escalation pairs as models, on one thread of torch.

    Args:
        family: The subnets of a run.
        profiles: Which to bind; a pair names its fallback.
        threshold: Confidence below which a pair escalates.
    """
    torch.set_num_threads(1)
    return tuple(
        TorchShares(family.select(get_small_subnet(profile), profile.fallback, threshold)) for profile in profiles
    )


def split_pair(model: ShareModel) -> tuple[TorchShares, TorchShares]:
    """Split an escalation pair into its small and its large subnet.

    Raises:
        TypeError: The model is no pair.
    """
    if not isinstance(model, TorchShares) or not isinstance(model.model, EscalationPair):
        raise TypeError(f"{model!r} is no escalation pair")
    return TorchShares(model.model.small), TorchShares(model.model.large)
