"""`unfold check --data`: records, price lists and tables of a tuning job are read."""

from __future__ import annotations

from pathlib import Path

from tuning_runs import load_spec

from unfold_tuning.verbs.check_inputs import check_inputs
from unfoldkit.api import Run, RunDir
from unfoldkit.engines.local import LocalEngine

SPEC = """
version: 1
kind: tuning
name: mine
search: {algorithm: successive-halving, trials: 2, min_iters: 1, max_iters: 2, eta: 2}
trainable: {estimator: xgboost, data: wine.csv, target: kind, space: {max_depth: {int: [2, 3]}}}
deadline: 5 min
cloud: {provider: aws, region: us-east-1, instances: [g5.xlarge], prices: prices.csv}
profile: {recorded: {path: trials.csv, accelerators: 1}, speedup: {1: 1}}
"""
FILES = {
    "wine.csv": "a,b,kind\n1,2,x\n3,4,y\n",
    "prices.csv": "instance,region,vcpus,memory_gib,gpu,gpus,on_demand,spot\ng5.xlarge,us-east-1,4,16,A10G,1,1.0,0.4\n",
    "trials.csv": "trial_id,training_iteration,time_this_iter_s\na,1,2.0\na,2,2.1\nb,1,1.9\n",
}


def list_errors(folder: Path, text: str = SPEC, **changed: str) -> list[str]:
    """List the errors in the files of a spec, some of them changed."""
    for name, content in FILES.items():
        (folder / name).write_text(changed.get(name.removesuffix(".csv"), content), encoding="utf-8")
    run = Run(RunDir(folder / "run"), LocalEngine(1), base=folder)
    return [str(diagnostic) for diagnostic in check_inputs(load_spec(text), run)]


def test_valid_inputs_have_no_errors(tmp_path: Path) -> None:
    """A spec with readable files has no errors, nor has one with bundled data, and nothing is written."""
    assert list_errors(tmp_path) == []
    assert list_errors(tmp_path, SPEC.replace("data: wine.csv, target: kind", "data: wine")) == []
    assert not (tmp_path / "run").exists()


def test_errors_of_all_files_are_reported_together(tmp_path: Path) -> None:
    """A record without iterations, a price list without the type, and a cell of text are reported at once."""
    record, price, cell = list_errors(
        tmp_path, trials="trial_id,time_this_iter_s\n", prices="instance,region\n", wine="a,kind\none,x\n"
    )
    assert "trials.csv" in record
    assert "prices.csv" in price
    assert "wine.csv:2" in cell
    assert "'one' is not a number" in cell
