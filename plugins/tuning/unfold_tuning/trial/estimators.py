"""The built-in trainables: XGBoost, scikit-learn by ``partial_fit``, and a network of torch.

An iteration is ``rounds`` boosting rounds or passes over the data. What a trial has learnt is bytes that hold numbers
only (UBJSON, skops with an allow-list, safetensors), and going on from them gives what one go would have given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unfoldkit.safe_io.boosters import check_booster
from unfoldkit.safe_io.skops import dump_skops, load_skops

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Config = Mapping[str, Any]
Train = Callable[[Config, bytes | None, int, int, int], tuple[float, bytes]]
ROUNDS_KEY = {"xgboost": "n_estimators", "sgd": "max_iter", "mlp": "max_iter", "torch-mlp": "epochs"}
"""What each estimator calls the number of its rounds."""


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to fit and rows held out, with labels 0 to ``classes - 1``; the metric is of the latter."""

    x: Floats
    y: Ints
    held_out: Floats
    truth: Ints
    classes: int
    rounds: int
    metric: str

    def scored(self, shares: npt.NDArray[Any]) -> float:
        """Return the metric of class probabilities [rows, classes]; higher is better."""
        if self.metric == "accuracy":
            return float((shares.argmax(axis=1) == self.truth).mean())
        return float(np.log(np.maximum(shares[np.arange(len(self.truth)), self.truth], 1e-12)).mean())

    def scaled(self) -> Split:
        """Return the split with columns of mean 0 and deviation 1 on the rows to fit; missing values become 0."""
        mean, std = np.nanmean(self.x, axis=0), np.nanstd(self.x, axis=0)
        std = np.where(std > 0, std, 1.0)
        fit, rest = (np.nan_to_num((rows - mean) / std) for rows in (self.x, self.held_out))
        return Split(fit, self.y, rest, self.truth, self.classes, self.rounds, self.metric)


def split(x: Floats, y: Ints, rounds: int, metric: str, seed: int, group: Ints | None = None) -> Split:
    """Hold 30 % of the rows out, by a seed; those of one ``group`` (numbered from 0) together."""
    units = len(y) if group is None else int(group.max()) + 1
    out = np.random.default_rng([seed, 77]).random(units) < 0.3
    out = out if group is None else out[group]
    return Split(x[~out], y[~out], x[out], y[out], int(y.max()) + 1, rounds, metric)


def boosted(data: Split) -> Train:
    """Return gradient boosting by XGBoost; the state is UBJSON."""
    import xgboost

    train, test = xgboost.DMatrix(data.x, data.y), xgboost.DMatrix(data.held_out)

    def run(config: Config, state: bytes | None, iters: int, accelerators: int, seed: int) -> tuple[float, bytes]:
        given = {"objective": "multi:softprob", "num_class": data.classes, "nthread": accelerators, "seed": seed}
        if state:
            check_booster(state)
        before = xgboost.Booster(model_file=bytearray(state)) if state else None
        model = xgboost.train({**given, **config}, train, num_boost_round=iters * data.rounds, xgb_model=before)
        return data.scored(model.predict(test)), bytes(model.save_raw("ubj"))

    return run


def linear(data: Split) -> Train:
    """Return logistic regression by stochastic gradient descent (scikit-learn); the state is of skops."""
    from sklearn.linear_model import SGDClassifier

    return incremental(data, lambda config, seed: SGDClassifier(loss="log_loss", random_state=seed, **config))


def network(data: Split) -> Train:
    """Return a multi-layer perceptron (scikit-learn); the state is of skops."""
    from sklearn.neural_network import MLPClassifier

    return incremental(data, lambda config, seed: MLPClassifier(random_state=seed, **config))


def incremental(data: Split, fresh: Callable[[Config, int], Any]) -> Train:
    """Return an estimator of scikit-learn that learns pass by pass, on scaled columns."""
    data = data.scaled()
    classes = np.arange(data.classes)

    def run(config: Config, state: bytes | None, iters: int, accelerators: int, seed: int) -> tuple[float, bytes]:  # noqa: ARG001 - one thread
        model = load_skops(state) if state else fresh(config, seed)
        for _ in range(iters * data.rounds):
            model.partial_fit(data.x, data.y, classes=classes)
        return data.scored(model.predict_proba(data.held_out)), dump_skops(model, type(model).__name__)

    return run


def torch_network(data: Split) -> Train:
    """Return a multi-layer perceptron of torch, on a GPU where there is one; the state is safetensors.

    The space may name ``width``, ``depth``, ``learning_rate``, ``weight_decay``, ``dropout`` and ``batch_size``.
    """
    import torch
    from safetensors.torch import load, save

    data = data.scaled()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, rest = (torch.tensor(rows, dtype=torch.float32, device=device) for rows in (data.x, data.held_out))
    y = torch.tensor(data.y, device=device)

    def run(config: Config, state: bytes | None, iters: int, accelerators: int, seed: int) -> tuple[float, bytes]:
        torch.set_num_threads(accelerators)
        tensors = load(state) if state else {}
        done = int(tensors.get("passes", torch.tensor(0)))
        torch.manual_seed(seed)
        model = _layers(x.shape[1], data.classes, config).to(device)
        rule = torch.optim.Adam(
            model.parameters(),
            lr=float(config.get("learning_rate", 1e-3)),
            weight_decay=float(config.get("weight_decay", 0.0)),
        )
        _restored(model, rule, tensors)
        for index in range(done, done + iters * data.rounds):
            _one_pass(model, rule, x, y, int(config.get("batch_size", 32)), seed * 1_000_003 + index)
        model.eval()
        with torch.no_grad():
            shares = torch.softmax(model(rest), dim=1).cpu().numpy()
        return data.scored(shares), save(_kept(model, rule, done + iters * data.rounds))

    return run


def _layers(columns: int, classes: int, config: Config) -> Any:
    from torch import nn

    width, parts = int(config.get("width", 64)), []
    for _ in range(int(config.get("depth", 1))):
        parts += [nn.Linear(columns, width), nn.ReLU(), nn.Dropout(float(config.get("dropout", 0.0)))]
        columns = width
    return nn.Sequential(*parts, nn.Linear(columns, classes))


def _one_pass(model: Any, rule: Any, x: Any, y: Any, batch: int, seed: int) -> None:
    import torch

    # drawn anew by its number, so that a pass after a checkpoint is the pass that it would have been without
    torch.manual_seed(seed)
    model.train()
    order = torch.randperm(len(y)).to(y.device)
    for at in range(math.ceil(len(y) / batch)):
        rows = order[at * batch : (at + 1) * batch]
        rule.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        rule.step()


def _kept(model: Any, rule: Any, passes: int) -> dict[str, Any]:
    import torch

    own = {f"model.{name}": value for name, value in model.state_dict().items()}
    moments = {
        f"rule.{i}.{name}": value for i, item in rule.state_dict()["state"].items() for name, value in item.items()
    }
    return {name: value.detach().cpu().contiguous() for name, value in (own | moments).items()} | {
        "passes": torch.tensor(passes)
    }


def _restored(model: Any, rule: Any, tensors: Mapping[str, Any]) -> None:
    if not tensors:
        return
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("rule."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    rule.load_state_dict({**rule.state_dict(), "state": state})


BUILT_IN: Mapping[str, Callable[[Split], Train]] = {
    "xgboost": boosted,
    "sgd": linear,
    "mlp": network,
    "torch-mlp": torch_network,
}
