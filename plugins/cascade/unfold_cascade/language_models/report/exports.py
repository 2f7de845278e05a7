"""A route in the configuration of other gateways, with a comment on what they cannot express.

LiteLLM: docs/proxy/configs and docs/proxy/reliability of BerriAI/litellm-docs. vLLM semantic router:
``looper/confidence.go`` of vllm-project/semantic-router@3d48f8c. Its confidence is ``(mean log-probability + 3) / 3``,
clipped to [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from unfold_cascade.language_models.planning.calibration import Calibration

SCALE = 3.0
"""The semantic router maps mean log-probabilities from -3 to 0 onto confidences from 0 to 1."""
LITELLM_HEAD = """\
# LiteLLM proxy configuration with the models of an unfold plan: litellm --config litellm.yaml
# What it cannot express: LiteLLM does not read an answer before it returns it, so there is no gate. The alias goes to
# the last model; the cheaper ones are listed beside it. Fallbacks run when a call fails, not when an answer is unsure.
# The promise of the plan does not hold here.
"""
ROUTER_HEAD = """\
# vLLM semantic router: a decision with the tuned thresholds, to be merged into its configuration.
# What it cannot express: calibrated scores (the threshold is on its fixed scale of mean log-probabilities), thresholds
# by model (the strictest of the chain is taken, so that it escalates more often than planned), audits and budgets.
# The promise of the plan does not hold here. Its default threshold for avg_logprob is -1.0, which never escalates.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """A model as other gateways name it; ``key_env`` is the environment variable with its key."""

    name: str
    url: str
    upstream_model: str
    key_env: str | None
    input_usd: float
    output_usd: float


def export_litellm(alias: str, chain: tuple[str, ...], models: Mapping[str, ExportedModel]) -> str:
    """Write a configuration of the LiteLLM proxy."""
    reference = chain[-1]
    entries = [_litellm_model(name, models[name]) for name in chain]
    entries.append(_litellm_model(alias, models[reference]))
    settings = {"fallbacks": [{name: [reference]} for name in chain[:-1]]}
    document = {"model_list": entries, "litellm_settings": settings if settings["fallbacks"] else {}}
    return LITELLM_HEAD + yaml.safe_dump(document, sort_keys=False)


def export_semantic_router(
    alias: str, chain: tuple[str, ...], cuts: tuple[float, ...], calibrations: Mapping[str, Calibration]
) -> str | None:
    """Write a decision of the semantic router; ``None`` if a cut is no threshold on mean log-probabilities."""
    thresholds = [find_logprob(calibrations[name], cut) for name, cut in zip(chain[:-1], cuts, strict=True)]
    if not thresholds or any(value is None for value in thresholds):
        return None
    strictest = max(value for value in thresholds if value is not None)
    confidence = {
        "confidence_method": "avg_logprob",
        "threshold": round(scale_logprob(strictest), 4),
        "on_error": "skip",
    }
    decision = {
        "name": alias,
        "modelRefs": [{"model": name} for name in chain],
        "algorithm": {"type": "confidence", "confidence": confidence},
    }
    return ROUTER_HEAD + yaml.safe_dump({"decisions": [decision]}, sort_keys=False)


def scale_logprob(logprob: float) -> float:
    """Convert a mean log-probability to the confidence of the semantic router."""
    return min(max((logprob + SCALE) / SCALE, 0.0), 1.0)


def find_logprob(calibration: Calibration, cut: float) -> float | None:
    """Find the log-probability from which a score is at least ``cut``; ``None`` if that is no lower bound."""
    if calibration.scale != "logprob" or calibration.slope <= 0.0:
        return None
    low, high = -50.0, 0.0
    if calibration.probability(high) < cut:
        return None
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if calibration.probability(middle) >= cut else (middle, high)
    return high


def _litellm_model(name: str, model: ExportedModel) -> dict[str, object]:
    parameters: dict[str, object] = {"model": f"openai/{model.upstream_model}", "api_base": model.url}
    # the proxy reads the variable itself: no key is written
    parameters["api_key"] = f"os.environ/{model.key_env}" if model.key_env else "none"
    parameters |= {"input_cost_per_token": model.input_usd, "output_cost_per_token": model.output_usd}
    return {"model_name": name, "litellm_params": parameters}
