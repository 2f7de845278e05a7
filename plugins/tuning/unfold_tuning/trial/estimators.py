"""The built-in trainables: XGBoost, scikit-learn through ``partial_fit``, and a PyTorch MLP.

An iteration is ``rounds`` boosting rounds or passes over the data. The state of a trial is bytes that hold numbers only
(UBJSON, skops with an allow-list, safetensors); resuming from it gives the same result as an uninterrupted run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from unfold_tuning._types import FloatArray, IntArray
from unfoldkit.safe_io.boosters import check_booster
from unfoldkit.safe_io.skops import dump_skops, load_skops

Config = Mapping[str, Any]
TrainFunction = Callable[[Config, bytes | None, int, int, int], tuple[float, bytes]]
"""``(config, state, iters, accelerators, seed) -> (metric, state)``; see :mod:`unfold_tuning.trial.trainable`."""
ROUNDS_PARAMETERS = {"xgboost": "n_estimators", "sgd": "max_iter", "mlp": "max_iter", "torch-mlp": "epochs"}
"""The parameter of each estimator that counts its rounds."""
HELD_OUT_FRACTION = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSplit:
    """Rows to fit and rows held out; the metric is computed on the latter.

    Attributes:
        x: Features to fit: [rows, columns].
        y: Their labels, 0 to ``classes - 1``: [rows].
        x_held_out: Features held out.
        y_held_out: Their labels.
        classes: Number of classes.
        rounds: Rounds per iteration.
        metric: ``accuracy`` or ``log-loss``.
    """

    x: FloatArray
    y: IntArray
    x_held_out: FloatArray
    y_held_out: IntArray
    classes: int
    rounds: int
    metric: str

    def score(self, probabilities: npt.NDArray[Any]) -> float:
        """Compute the metric of class probabilities of the rows held out, [rows, classes]."""
        if self.metric == "accuracy":
            return float((probabilities.argmax(axis=1) == self.y_held_out).mean())
        likelihood = probabilities[np.arange(len(self.y_held_out)), self.y_held_out]
        return float(-np.log(np.maximum(likelihood, 1e-12)).mean())

    def standardize(self) -> DataSplit:
        """Return the split with columns of mean 0 and deviation 1 on the rows to fit; missing values become 0."""
        mean, std = np.nanmean(self.x, axis=0), np.nanstd(self.x, axis=0)
        std = np.where(std > 0, std, 1.0)
        x, x_held_out = (np.nan_to_num((rows - mean) / std) for rows in (self.x, self.x_held_out))
        return replace(self, x=x, x_held_out=x_held_out)


def split_rows(
    x: FloatArray, y: IntArray, rounds: int, metric: str, seed: int, groups: IntArray | None = None
) -> DataSplit:
    """Hold out 30 % of the rows at random; rows of one group (numbered from 0) are held out together."""
    units = len(y) if groups is None else int(groups.max()) + 1
    is_held_out = np.random.default_rng([seed, 77]).random(units) < HELD_OUT_FRACTION
    if groups is not None:
        is_held_out = is_held_out[groups]
    return DataSplit(
        x=x[~is_held_out],
        y=y[~is_held_out],
        x_held_out=x[is_held_out],
        y_held_out=y[is_held_out],
        classes=int(y.max()) + 1,
        rounds=rounds,
        metric=metric,
    )


def build_xgboost(data: DataSplit) -> TrainFunction:
    """Build gradient boosting by XGBoost; the state is UBJSON."""
    import xgboost

    fit_rows, held_out_rows = xgboost.DMatrix(data.x, data.y), xgboost.DMatrix(data.x_held_out)

    def train(config: Config, state: bytes | None, iters: int, accelerators: int, seed: int) -> tuple[float, bytes]:
        defaults = {"objective": "multi:softprob", "num_class": data.classes, "nthread": accelerators, "seed": seed}
        if state:
            check_booster(state)
        previous = xgboost.Booster(model_file=bytearray(state)) if state else None
        model = xgboost.train({**defaults, **config}, fit_rows, num_boost_round=iters * data.rounds, xgb_model=previous)
        return data.score(model.predict(held_out_rows)), bytes(model.save_raw("ubj"))

    return train


def build_sgd(data: DataSplit) -> TrainFunction:
    """Build logistic regression by stochastic gradient descent (scikit-learn); the state is skops."""
    from sklearn.linear_model import SGDClassifier

    return _build_partial_fit(data, lambda config, seed: SGDClassifier(loss="log_loss", random_state=seed, **config))


def build_mlp(data: DataSplit) -> TrainFunction:
    """Build a multi-layer perceptron (scikit-learn); the state is skops."""
    from sklearn.neural_network import MLPClassifier

    return _build_partial_fit(data, lambda config, seed: MLPClassifier(random_state=seed, **config))


def _build_partial_fit(data: DataSplit, create: Callable[[Config, int], Any]) -> TrainFunction:
    """Build a scikit-learn estimator that learns pass by pass, on standardized columns."""
    data = data.standardize()
    classes = np.arange(data.classes)

    def train(config: Config, state: bytes | None, iters: int, accelerators: int, seed: int) -> tuple[float, bytes]:  # noqa: ARG001 - one thread
        model = load_skops(state) if state else create(config, seed)
        for _ in range(iters * data.rounds):
            model.partial_fit(data.x, data.y, classes=classes)
        return data.score(model.predict_proba(data.x_held_out)), dump_skops(model, type(model).__name__)

    return train


def build_torch_mlp(data: DataSplit) -> TrainFunction:
    """Build a PyTorch MLP, on a GPU if there is one; the state is safetensors.

    The space may name ``width``, ``depth``, ``learning_rate``, ``weight_decay``, ``dropout`` and ``batch_size``.
    """
    import torch
    from safetensors.torch import load, save

    data = data.standardize()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, x_held_out = (torch.tensor(rows, dtype=torch.float32, device=device) for rows in (data.x, data.x_held_out))
    y = torch.tensor(data.y, device=device)

    def train(config: Config, state: bytes | None, iters: int, accelerators: int, seed: int) -> tuple[float, bytes]:
        torch.set_num_threads(accelerators)
        tensors = load(state) if state else {}
        done = int(tensors.get("passes", torch.tensor(0)))
        torch.manual_seed(seed)
        model = _build_layers(x.shape[1], data.classes, config).to(device)
        optimizer = torch.optim.Adam(
            model.parameters(),
            lr=float(config.get("learning_rate", 1e-3)),
            weight_decay=float(config.get("weight_decay", 0.0)),
        )
        _restore_torch_state(model, optimizer, tensors)
        for index in range(done, done + iters * data.rounds):
            _run_pass(model, optimizer, x, y, int(config.get("batch_size", 32)), seed * 1_000_003 + index)
        model.eval()
        with torch.no_grad():
            probabilities = torch.softmax(model(x_held_out), dim=1).cpu().numpy()
        return data.score(probabilities), save(_collect_torch_state(model, optimizer, done + iters * data.rounds))

    return train


def _build_layers(columns: int, classes: int, config: Config) -> Any:
    from torch import nn

    width, layers = int(config.get("width", 64)), []
    for _ in range(int(config.get("depth", 1))):
        layers += [nn.Linear(columns, width), nn.ReLU(), nn.Dropout(float(config.get("dropout", 0.0)))]
        columns = width
    return nn.Sequential(*layers, nn.Linear(columns, classes))


def _run_pass(model: Any, optimizer: Any, x: Any, y: Any, batch_size: int, seed: int) -> None:
    import torch

    # seeded by its number, so that a pass after a checkpoint equals the uninterrupted one
    torch.manual_seed(seed)
    model.train()
    order = torch.randperm(len(y)).to(y.device)
    for batch in range(math.ceil(len(y) / batch_size)):
        rows = order[batch * batch_size : (batch + 1) * batch_size]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()


def _collect_torch_state(model: Any, optimizer: Any, passes: int) -> dict[str, Any]:
    import torch

    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    moments = {
        f"rule.{index}.{name}": tensor
        for index, slots in optimizer.state_dict()["state"].items()
        for name, tensor in slots.items()
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in (weights | moments).items()}
    return tensors | {"passes": torch.tensor(passes)}


def _restore_torch_state(model: Any, optimizer: Any, tensors: Mapping[str, Any]) -> None:
    if not tensors:
        return
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    model.load_state_dict(weights)
    moments: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith("rule."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


BUILDERS: Mapping[str, Callable[[DataSplit], TrainFunction]] = {
    "xgboost": build_xgboost,
    "sgd": build_sgd,
    "mlp": build_mlp,
    "torch-mlp": build_torch_mlp,
}
