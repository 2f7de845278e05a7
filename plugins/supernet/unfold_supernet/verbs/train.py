"""The verb ``train``: one set of weights, every subnet measured, the weight-sharing gap, the cost of a model switch."""

from __future__ import annotations

from unfold_supernet.report.training import build_training_report
from unfold_supernet.schema.supernet import SupernetSpec
from unfold_supernet.verbs.build import build_module_problem, build_training_problem
from unfoldkit.api import Report, Run, require_packages


def train(spec: SupernetSpec, run: Run) -> Report:
    """Train the supernet, measure every subnet, and store weights, statistics and extracted subnets in the run.

    Raises:
        UnfoldError: There is no space to train, torch is missing, or the data is invalid.
    """
    require_torch()
    if spec.model is not None:
        return _train_module(spec, run)
    problem = build_training_problem(spec, run)
    from unfold_supernet.training.evaluation import train_and_evaluate

    return build_training_report(problem, train_and_evaluate(problem, run.directory, run.progress, run.clock))


def _train_module(spec: SupernetSpec, run: Run) -> Report:
    require_torch("torch_pruning", "onnxscript")
    problem = build_module_problem(spec, run)
    from unfold_supernet.modules.evaluation import train_module
    from unfold_supernet.report.module import build_module_report

    result = train_module(problem, run.directory, run.progress)
    return build_module_report(problem, result, run.directory)


def require_torch(*others: str) -> None:
    """Check that torch, safetensors and other packages of the extra are installed.

    Raises:
        UnfoldError: One of them is not (exit code 2; the hint names the extra).
    """
    require_packages("a supernet", "torch", "safetensors", *others)
