"""A module of the user's from its spec to served ONNX members."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
pytest.importorskip("torch_pruning", reason="needs the extra torch: nox -s torch")
pytest.importorskip("onnxscript", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from safetensors.torch import save_file, save_model  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

from tests.served import serving  # noqa: E402
from tests.support import Outcome, call  # noqa: E402
from unfold_supernet.modules.problem import ModuleSource  # noqa: E402
from unfold_supernet.modules.user_module import digest_code, load_module  # noqa: E402
from unfoldkit.api import UnfoldError  # noqa: E402

pytestmark = pytest.mark.torch

CODE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))

    def forward(self, x):
        return torch.relu(x + self.body(x))


def net(num_classes, width=12):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Sequential(Block(width), Block(width)),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_classes),
    )


def depends_on_data():
    class Branch(nn.Linear):
        def forward(self, x):
            if x.sum() > 1e9:
                raise ValueError("too large")
            return super().forward(x.flatten(1))
    return Branch(64, 10)


def nothing():
    return 5


def raises():
    raise RuntimeError("no such file")


def ends():
    raise SystemExit("bye")


def single(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


def probabilities(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_classes), nn.Softmax(1))
"""
SPEC = """
version: 1
kind: supernet
name: mine
data: {source: digits}
model: {from: "mine:net", widths: [0.34, 1], depths: [0.5, 1]}
training: {epochs: 5, batch: 64, rate: 0.005, alone: false}
serving: {slo: 500 ms}
"""


def write_spec(folder: Path, text: str = SPEC) -> None:
    (folder / "mine.py").write_text(CODE, "utf-8")
    (folder / "mine.yaml").write_text(text, "utf-8")


def unfold(folder: Path, *words: str) -> Outcome:
    """Run the command line in a folder, in this process: importing torch again takes longer than most trainings."""
    # each folder has its own module of this name
    sys.modules.pop("mine", None)
    with contextlib.chdir(folder):
        return call(words)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("module")
    write_spec(folder)
    done = unfold(folder, "train", "mine.yaml", "--allow-code", "--format", "json")
    assert done.code == 0, done.err
    (folder / "report.json").write_text(done.out, "utf-8")
    return folder


def test_report_states_members_and_calibration(trained: Path) -> None:
    """The report holds both members, a verdict, the classes' layer as shared, and the calibration error."""
    report: dict[str, Any] = json.loads((trained / "report.json").read_text("utf-8"))
    assert report["verdict"] == "yes"
    assert report["metrics"]["accuracy_max"]["value"] > report["metrics"]["accuracy_min"]["value"] > 50
    assert report["metrics"]["ece_points_max"]["value"] < 15
    assert "shared in full" in dict(report["lines"])


def test_missed_goal_is_a_no(trained: Path) -> None:
    """A goal beyond what the family reaches ends with exit code 1 and names both figures."""
    (trained / "high.yaml").write_text(SPEC + "goal: {accuracy: 99.9%}\n", "utf-8")
    done = unfold(trained, "train", "high.yaml", "--allow-code")
    assert done.code == 1, done.err
    assert "99.9 % required" in " ".join(done.out.split())


def test_second_training_reads_the_stored_weights(trained: Path) -> None:
    """Training again changes no prediction."""
    before = (trained / "runs" / "mine" / "answers.npz").read_bytes()
    done = unfold(trained, "train", "mine.yaml", "--allow-code", "--format", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["metrics"]["train_seconds"]["value"] < 30
    with np.load(trained / "runs" / "mine" / "answers.npz") as after, np.load(io.BytesIO(before)) as first:
        assert (after["said"] == first["said"]).all()


def test_the_code_of_a_network_is_what_it_was_trained_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest of a network's code changes with a file of its layers or of functions they call, as no shape does."""
    monkeypatch.syspath_prepend(tmp_path)
    source = ModuleSource(module="mine", function="net", folder=tmp_path, arguments={}, weights=None)
    (tmp_path / "mine.py").write_text("from gates import Gate\n\ndef net(): return Gate(2, 2)\n", "utf-8")
    code = "import torch\nfrom maths import act\n\nclass Gate(torch.nn.Linear):\n"
    gate = code + "    def forward(self, x): return act(super().forward(x))\n"
    digests = []
    for text, name in ((gate, "relu"), (gate, "relu"), (f"{gate}\n", "relu"), (gate, "sigmoid")):
        (tmp_path / "gates.py").write_text(text, "utf-8")
        (tmp_path / "maths.py").write_text(f"def act(x): return x.{name}()\n", "utf-8")
        for module in ("mine", "gates", "maths"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        digests.append(digest_code(load_module(source, 2, 0), source))
    assert digests[0] == digests[1]
    assert len({*digests}) == 3


def test_served_labels_are_those_of_the_onnx_members(trained: Path) -> None:
    """The service needs no code of the user's, and returns what ONNX Runtime returns for the exported file."""
    x = (load_digits().data[:20] / 16).reshape(-1, 1, 8, 8)
    (trained / "mine.py").rename(trained / "mine.away")
    try:
        with serving(trained, "runs/mine") as (_, address):
            tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP64", "data": x.ravel().tolist()}
            body = {"inputs": [tensor], "parameters": {"deadline_ms": 20_000}}
            request = urllib.request.Request(f"{address}/v2/models/mine/infer", json.dumps(body).encode())
            with urllib.request.urlopen(request, timeout=30) as answer:
                reply = json.load(answer)
    finally:
        (trained / "mine.away").rename(trained / "mine.py")
    outputs = {output["name"]: output["data"] for output in reply["outputs"]}
    session = onnxruntime.InferenceSession(trained / "runs" / "mine" / "subnets" / f"{outputs['net'][0]}.onnx")
    logits = session.run(None, {"x": x.astype(np.float32)})[0]
    assert outputs["label"] == [str(label) for label in logits.argmax(1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("mine:net", "mine:nothing"), "returns an object of type int, not a torch module"),
        (("mine:net", "mine:raises"), "RuntimeError: no such file"),
        (("mine:net", "mine:ends"), "SystemExit: bye"),
        (('net", widths: [0.34, 1], depths: [0.5, 1]', 'probabilities", widths: [0.34, 1]'), "returns probabilities"),
        (
            ('net", widths: [0.34, 1], depths: [0.5, 1]', 'single", widths: [0.34, 1]'),
            r"mine\.yaml:6:\d+: model\.widths: no channels .* \(1: its channels",
        ),
        (("mine:net", "mine:absent"), "no attribute 'absent'"),
        (("mine:net", "away:net"), "No module named 'away' .install away, or check the name"),
        (("mine:net", "mine:depends_on_data"), "its control flow or a shape depends on the values"),
        (('"mine:net"', '"mine:net", arguments: {num_classes: 3}'), "3.* values a row for 10 classes"),
        (('"mine:net"', '"mine:net", weights: other.safetensors'), "the weights do not fit the module"),
        (('"mine:net"', '"mine:net", weights: broken.safetensors'), "broken.safetensors"),
        (
            ('"mine:net"', '"mine:net", weights: cut.safetensors'),
            "cut.safetensors: model.weights: not safetensors.*save_model",
        ),
        (
            ('"mine:net"', '"mine:net", arguments: {width: 6}, weights: head.safetensors'),
            "mismatch.*load what fits in your function",
        ),
        (('"mine:net"', '"mine:net", weights: saved.pt'), "saved.pt.*a pickled file of torch.save"),
    ],
)
def test_unsuitable_code_ends_with_exit_code_2(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    """Each mistake is named in one line before any training."""
    write_spec(tmp_path, SPEC.replace(*change))
    save_file({"0.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    torch.save({"0.weight": torch.zeros(2)}, tmp_path / "saved.pt")
    scope: dict[str, Any] = {}
    exec(CODE, scope)  # noqa: S102 - the code of this file
    save_file(scope["net"](10).state_dict(), tmp_path / "head.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:-4])
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    done = unfold(tmp_path, "train", "mine.yaml", "--allow-code")
    assert done.code == 2, done.err
    assert re.search(message, " ".join(done.err.split())), done.err
    assert "Traceback" not in done.err
    # torch prints the graph of what it failed to export
    assert "def forward" not in done.err


TIED = """
from torch import nn

def net():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    return model
"""


def test_tensors_are_read_under_all_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``save_model`` stores what two layers share once; integers in the place of weights are named."""
    (tmp_path / "tied_net.py").write_text(TIED, "utf-8")
    scope: dict[str, Any] = {}
    exec(TIED, scope)  # noqa: S102 - the code of this file
    saved, path = scope["net"](), tmp_path / "tied.safetensors"
    save_model(saved, path)
    monkeypatch.delitem(sys.modules, "tied_net", raising=False)
    source = ModuleSource(module="tied_net", function="net", folder=tmp_path, arguments={}, weights=path)
    loaded = load_module(source, 4, 0)
    assert loaded[2].weight is loaded[0].weight
    torch.testing.assert_close(loaded.state_dict(), saved.state_dict())
    save_file({key: tensor.clone().to(torch.int8) for key, tensor in saved.state_dict().items()}, path)
    with pytest.raises(UnfoldError, match=r"0\.weight is int8, not a tensor of floating-point numbers"):
        load_module(source, 4, 0)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_weights_of_a_wrapped_network_are_read(tmp_path: Path, wrapper: str) -> None:
    """Weights that were saved of a wrapped or compiled network start the training like those of the network itself."""
    write_spec(tmp_path)
    scope: dict[str, Any] = {}
    exec(CODE, scope)  # noqa: S102 - the code of this file
    torch.manual_seed(7)
    saved = {f"{wrapper}{key}": tensor for key, tensor in scope["net"](10).state_dict().items()}
    save_file(saved, tmp_path / "wrapped.safetensors")
    source = ModuleSource(
        module="mine", function="net", folder=tmp_path, arguments={}, weights=tmp_path / "wrapped.safetensors"
    )
    sys.modules.pop("mine", None)
    for key, tensor in load_module(source, 10, 0).state_dict().items():
        assert torch.equal(tensor, saved[f"{wrapper}{key}"])


def test_the_accelerator_refuses_a_module(trained: Path) -> None:
    """A plan without a trace names what it can simulate; a training names the run to serve next."""
    done = unfold(trained, "plan", "mine.yaml")
    assert done.code == 2
    assert "not a module of your own" in " ".join(done.err.split())
    assert json.loads((trained / "report.json").read_text("utf-8"))["next"] == "unfold serve runs/mine"


def test_code_needs_permission(tmp_path: Path) -> None:
    """Without --allow-code, nothing of the module runs."""
    write_spec(tmp_path)
    (tmp_path / "mine.py").write_text(CODE + "\nopen('ran', 'w').close()\n", "utf-8")
    done = unfold(tmp_path, "train", "mine.yaml")
    assert done.code == 2
    assert "--allow-code" in done.err
    assert not (tmp_path / "ran").exists()


def test_shards_train_the_same_family_as_one_archive(tmp_path: Path) -> None:
    """Rows in shards, with class weights, give the predictions of the same rows in one archive."""
    digits = load_digits()
    x, y = (digits.data[:400] / 16).astype(np.float32).reshape(-1, 1, 8, 8), digits.target[:400]
    np.savez(tmp_path / "all.npz", x=x, y=y)
    (tmp_path / "shards").mkdir()
    for index, rows in enumerate(np.array_split(np.arange(400), 4)):
        np.savez(tmp_path / "shards" / f"{index}.npz", x=x[rows], y=y[rows])
    predictions = []
    for path in ("all.npz", "shards"):
        text = SPEC.replace("{source: digits}", f"{{source: file, path: {path}}}").replace("epochs: 5", "epochs: 2")
        write_spec(tmp_path, text.replace("alone: false", "alone: false, class_weights: balanced"))
        done = unfold(tmp_path, "train", "mine.yaml", "--allow-code", "--run", f"runs/{path}")
        assert done.code in (0, 1), done.err
        with np.load(tmp_path / "runs" / path / "answers.npz") as stored:
            predictions.append({name: stored[name] for name in stored.files})
    assert predictions[0].keys() == predictions[1].keys()
    for name, values in predictions[0].items():
        np.testing.assert_array_equal(values, predictions[1][name])
    assert not list((tmp_path / "runs" / "shards").glob("tmp*"))
