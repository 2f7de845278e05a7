"""A supernet as files of its run: weights, norm statistics and the search space."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict

import torch
from safetensors.torch import save
from torch import Tensor

from unfold_supernet.family.artifacts import SPACE_FILE, read_space
from unfold_supernet.networks.layers import Statistics, Weights
from unfold_supernet.networks.space import Space, Subnet
from unfold_supernet.networks.supernet import Supernet, bind_subnet
from unfoldkit.api import RunDir
from unfoldkit.safe_io.arrays import load_tensors
from unfoldkit.safe_io.files import decoding

WEIGHTS_FILE = "family/weights.safetensors"
NORMS_FILE = "family/norms.safetensors"
CHECKPOINT_FILE = "family/checkpoint.safetensors"
TEMPERATURE = "temperature"


def write_supernet(
    directory: RunDir,
    space: Space,
    weights: Weights,
    norms: Mapping[str, Statistics],
    made_from: str,
    temperatures: Mapping[str, float] | None = None,
) -> None:
    """Write a supernet into a run.

    Args:
        directory: The run.
        space: The search space.
        weights: The shared weights.
        norms: Norm statistics by subnet.
        made_from: Fingerprint of everything that the weights depend on.
        temperatures: Temperature by subnet; 1 where absent.
    """
    flat = {
        f"{name}/{layer}/{moment}": tensor.contiguous()
        for name, statistics in norms.items()
        for layer, pair in enumerate(statistics)
        for moment, tensor in zip(("mean", "variance"), pair, strict=True)
    }
    flat |= {f"{name}/{TEMPERATURE}": torch.tensor(value) for name, value in (temperatures or {}).items()}
    directory.write(WEIGHTS_FILE, save(weights), made_from=made_from)
    directory.write(NORMS_FILE, save(flat), made_from=made_from)
    directory.write(SPACE_FILE, (json.dumps(asdict(space)) + "\n").encode(), made_from=made_from)


def read_supernet(directory: RunDir) -> Supernet:
    """Read the supernet of a run, every subnet bound to the shared weights.

    Raises:
        UnfoldError: The run holds none, or a file was modified.
    """
    space = read_space(directory)
    weights, flat = (_read_tensors(directory, name) for name in (WEIGHTS_FILE, NORMS_FILE))
    with decoding(str(directory.path / WEIGHTS_FILE), "the weights of this supernet"):
        bound = {
            subnet.name: bind_subnet(
                space, weights, subnet, _select_norms(flat, subnet), _read_temperature(flat, subnet)
            )
            for subnet in space.subnets
        }
    return Supernet(space, weights, bound)


def _read_tensors(directory: RunDir, name: str) -> dict[str, Tensor]:
    with directory.decoding(name, "tensors") as content:
        return load_tensors(content)


def _select_norms(flat: dict[str, Tensor], subnet: Subnet) -> Statistics:
    layers = sum(key.startswith(f"{subnet.name}/") and key.endswith("/mean") for key in flat)
    moments = [flat[f"{subnet.name}/{layer}/{moment}"] for layer in range(layers) for moment in ("mean", "variance")]
    # views of one tensor: of a small subnet, the objects around numbers need more memory than the numbers
    parts = torch.cat(moments).split([len(moment) for moment in moments]) if moments else ()
    return tuple(zip(parts[::2], parts[1::2], strict=True))


def _read_temperature(flat: dict[str, Tensor], subnet: Subnet) -> float:
    """Read a subnet's temperature; runs of versions that did not calibrate have none."""
    temperature = float(flat.get(f"{subnet.name}/{TEMPERATURE}", torch.tensor(1.0)))
    if not math.isfinite(temperature) or temperature <= 0:
        raise ValueError(f"temperature of {subnet.name} is {temperature}")
    return temperature
