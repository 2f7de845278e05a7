"""Torch subnets as models of plain arrays: what the service and a measured replay run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unfold_supernet._types import Float32Array, ShareModel
from unfold_supernet.modules.onnx_members import OnnxFamily
from unfold_supernet.networks.supernet import EscalationPair, Supernet
from unfold_supernet.scheduling.escalation import get_small_subnet
from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.training.latency import Model


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
