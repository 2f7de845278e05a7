"""Exports of a route to other gateways: valid YAML, the same decisions, no key."""

from __future__ import annotations

import numpy as np
import yaml

from unfold_cascade.language_models.planning.calibration import fit_calibration
from unfold_cascade.language_models.report.exports import (
    ExportedModel,
    export_litellm,
    export_semantic_router,
    find_logprob,
    scale_logprob,
)


def _model(name: str) -> ExportedModel:
    return ExportedModel(
        name=name, url="http://h/v1", upstream_model=f"{name}-1", key_env="KEY", input_usd=1e-6, output_usd=2e-6
    )


def test_thresholds_on_log_probabilities_decide_as_the_gate() -> None:
    """An answer is at or above the exported threshold exactly where its calibrated score reaches the cut."""
    rng = np.random.default_rng(0)
    logprob = np.log(rng.beta(4, 1.5, 2000))
    fit = fit_calibration(logprob, rng.random(2000) < np.exp(logprob))
    threshold = find_logprob(fit, 0.8)
    assert threshold is not None
    assert ((logprob >= threshold) == (fit.probabilities(logprob) >= 0.8)).all()
    turned = fit_calibration(logprob, rng.random(2000) > np.exp(logprob))
    assert find_logprob(turned, 0.3) is None
    text = export_semantic_router("auto", ("small", "large"), (0.8,), {"small": fit})
    assert text is not None
    confidence = yaml.safe_load(text)["decisions"][0]["algorithm"]["confidence"]
    assert abs(confidence["threshold"] - scale_logprob(threshold)) < 1e-3
    assert export_semantic_router("auto", ("small", "large"), (0.3,), {"small": turned}) is None


def test_litellm_names_variables_and_prices_but_no_key() -> None:
    """The alias is the reference, fallbacks lead to it, and prices are per token."""
    models = {name: _model(name) for name in ("small", "large")}
    document = yaml.safe_load(export_litellm("auto", ("small", "large"), models))
    entries = {entry["model_name"]: entry["litellm_params"] for entry in document["model_list"]}
    assert entries["auto"]["model"] == "openai/large-1"
    assert entries["small"] == {
        "model": "openai/small-1",
        "api_base": "http://h/v1",
        "api_key": "os.environ/KEY",
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": 2e-6,
    }
    assert document["litellm_settings"]["fallbacks"] == [{"small": ["large"]}]
