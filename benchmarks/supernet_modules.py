"""Which networks become a family without user code, and what sharing weights costs the members.

Ten networks of four kinds: residual, mobile and dense CNNs of torchvision, a vision transformer of timm, a BERT-style
encoder, a one-dimensional CNN and a multi-layer perceptron. None of them is trained: their weights are fresh. A network
counts as elastic if narrower members run and return outputs of the same shape. Two residual CNNs are trained, as
families, member by member and as ordinary networks. A full run takes less than 15 minutes of processor time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.frame import need

WIDTHS = (0.25, 0.5, 1.0)
DEPTHS = (0.5, 1.0, 1.0)
CLASSES, EDGE, ROWS = 10, 64, 6
SEEDS = 3
QUICK = ("mobilenet_v3_small", "encoder", "cnn_1d", "mlp")


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Make a family of each network, compare every member with its ONNX export, and train two families.

    Args:
        quick: Four small networks, and one epoch of one seed.
        seed: Of weights and inputs; the first of three seeds of the trainings.
        data: Folder that holds ``mitbih``; without it, only digits are trained on.

    Returns:
        ``metrics``, ``tables``, ``aims``, ``versions`` and ``notes``.
    """
    for module in ("torch", "torch_pruning", "onnxscript"):
        need(module, "torch")
    import torch

    from benchmarks.module_training import compare_trainings

    torch.set_num_threads(1)
    rows = []
    for name, build in list_networks().items():
        if quick and name not in QUICK:
            continue
        torch.manual_seed(seed)
        network, example = build()
        rows.append({"network": name, **measure(network.eval(), example)})
        print(rows[-1], file=sys.stderr, flush=True)
    elastic = [row for row in rows if not row["error"]]
    trained = compare_trainings(data, range(seed, seed + (1 if quick else SEEDS)), quick=quick)
    metrics = {
        "elastic": len(elastic),
        "networks": len(rows),
        "onnx_difference_max": max((row["onnx_difference"] for row in elastic), default=None),
        "trace_seconds_max": max((row["seconds"] for row in elastic), default=None),
        **trained["metrics"],
    }
    return {
        "metrics": metrics,
        "tables": {"networks": rows, "trained_members": trained["rows"]},
        "aims": {
            "elastic": "≥ 9",
            "onnx_difference_max": "≤ 1e-5",
            "sharing_cost_points_max": "≤ 0.5",
            "dominated": "0",
        },
        "versions": {"torch": torch.__version__},
        "notes": [
            "onnx_difference is the largest difference of an output, over the largest output of that member.",
            "smallest: multiply-accumulates of the smallest member over those of the full network.",
            f"sharing_cost: accuracy of the standalone network less that of the member, mean of {SEEDS} seeds.",
            "sharing_costs_surely_beyond_half: members of which that is more than 0.5 points at 95 %.",
            "same_groups_cost: the same on beats of the training patients that no network saw; errors are by beat.",
            "All three networks see nine tenths of the training rows; logits are shifted by how classes were sampled.",
            "dominated: members that an ordinary network of equal MACs and steps beats at 95 %.",
            "Errors are clustered by patient (mitbih) and by row (digits), over all seeds.",
        ],
    }


def measure(network: Any, example: Any) -> dict[str, Any]:
    """Make a family and compare its members with ONNX Runtime."""
    import onnxruntime
    import torch

    from unfold_supernet import elastic
    from unfoldkit.api import UnfoldError

    start = time.perf_counter()
    for depths in (DEPTHS, (1.0,)):
        try:
            family = elastic(network, example, widths=WIDTHS, depths=depths)
            break
        except UnfoldError as error:
            message = str(error)
    else:
        return {"error": message, "seconds": 0.0, "members": 0, "smallest": 1.0, "onnx_difference": 0.0}
    seconds = time.perf_counter() - start
    rows, differences = torch.cat([example] * (ROWS // len(example))), []
    for member in family.members():
        session = onnxruntime.InferenceSession(family.export("onnx", member.name))
        with torch.no_grad():
            expected = family(member.name, rows).numpy()
        difference = abs(session.run(None, {"x": rows.numpy()})[0] - expected).max()
        differences.append(float(difference / max(abs(expected).max(), 1e-6)))
    members = family.members()
    return {
        "error": "",
        "seconds": seconds,
        "members": len(members),
        "smallest": members[0].macs / members[-1].macs,
        "onnx_difference": max(differences),
    }


def list_networks() -> dict[str, Callable[[], tuple[Any, Any]]]:
    """List the networks by name; each builds itself and an example input."""
    import torch
    from torch import nn

    def image(name: str) -> Callable[[], tuple[Any, Any]]:
        def build() -> tuple[Any, Any]:
            import torchvision

            return getattr(torchvision.models, name)(num_classes=CLASSES), torch.randn(2, 3, EDGE, EDGE)

        return build

    def vit() -> tuple[Any, Any]:
        import timm

        network = timm.create_model("vit_tiny_patch16_224", img_size=EDGE, num_classes=CLASSES)
        return network, torch.randn(2, 3, EDGE, EDGE)

    class Encoder(nn.Module):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
            self.embed, self.head = nn.Embedding(1000, 64), nn.Linear(64, CLASSES)
            self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

        def forward(self, tokens: Any) -> Any:
            return self.head(self.encoder(self.embed(tokens)).mean(1))

    def encoder() -> tuple[Any, Any]:
        return Encoder(), torch.randint(0, 1000, (2, 24))

    def cnn_1d() -> tuple[Any, Any]:
        layers = [nn.Conv1d(2, 16, 7, 2), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 5), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, CLASSES)), torch.randn(
            2, 2, 128
        )

    def mlp() -> tuple[Any, Any]:
        layers = [nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES)]
        return nn.Sequential(*layers), torch.randn(2, 20)

    names = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121")
    return {
        **{name: image(name) for name in names},
        "vit_tiny": vit,
        "encoder": encoder,
        "cnn_1d": cnn_1d,
        "mlp": mlp,
    }
