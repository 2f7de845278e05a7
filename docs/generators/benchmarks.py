"""The pages of figures, one a kind: headline rows made from ``benchmarks/results/*.json``."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.frame import names
from docs.generators.markdown import code, table

INTRO = """# Benchmarks of {title}

A figure and its peers, or its bound, come from the same run on one machine. A missed target says so.
Each section links to the complete result; `python -m benchmarks NAME --write` measures it again.

"""
INDEX = """# Benchmarks

Every figure in these docs comes from `benchmarks/`. A benchmark runs its peers in the same call, on the same input and
machine. `python -m benchmarks` lists them, `python -m benchmarks NAME --write` measures one again, and
`python -m benchmarks --all` measures all.

{pages}

## Missed targets

{missed} of {judged} targets are missed.

{table}"""
PACE_COST = "a price of caution: [where the dollars go](../explanation/tuning-plans.md#what-a-promise-costs)"
ASHA_COST = (
    "jobs with deadlines that no plan can promise count, and short jobs favour ASHA: "
    "[a comparison](../explanation/tuning-plans.md)"
)
CAUSES = {
    "placement-verify transitions_per_s": "searches of four and six jobs are within their limits all the same",
    "supernet-modules sharing_cost_points_max": "few unseen patients: the standard error is nearly as large",
    "supernet-serve goodput_ratio_median": "no policy can exceed this on these windows: see the bound",
    "supernet-serve ece_points_max": "confidences are too low on routine records of unseen patients",
    "tuner equal_miss_cost_ratio_geomean": "the best of three peers, each tuned with hindsight, in each case",
    "tuning-promise cost_ratio_105": PACE_COST,
    "tuning-promise cost_ratio_130": PACE_COST,
    "tuning-promise cost_ratio_200": PACE_COST,
    "tuning-promise soonest_ratio": PACE_COST,
    "tuning-replay cost_ratio_asha_median": ASHA_COST,
    "tuning-replay cost_ratio_asha_worst_task": ASHA_COST,
    "tuning-spot cost_ratio_max": "the worst of 24 cells with ten starts each, hence largely chance",
}
"""What keeps a figure from its target, by benchmark and metric, where it is known."""
FIGURE = r"[\d.,]+(?:e-?\d+)?"
CONDITIONS = {
    "processor": "{}",
    "cores": "{} cores",
    "memory_gib": "{} GiB",
    "system": "{}",
    "load": "load average {}",
}
"""How the facts about a machine are worded."""
TITLES = {
    "cascade": "cascades",
    "pipeline": "pipelines",
    "tuning": "tuning jobs",
    "placement": "placement",
    "supernet": "supernets and accelerators",
    "serving": "serving and the command line",
}
OTHER_KINDS = {
    "engine-fidelity": "pipeline",
    "engine-live": "pipeline",
    "engine-plan": "pipeline",
    "engine-speed": "pipeline",
    "estimator": "pipeline",
    "tuner": "pipeline",
    "board-rates": "supernet",
    "fastswitch": "supernet",
    "gateway": "serving",
    "scale": "serving",
    "serve-abuse": "serving",
    "serve-artifact": "serving",
    "serve-load": "serving",
    "serve-overload": "serving",
    "startup": "serving",
}
HEADLINES: Mapping[str, Mapping[str, str]] = {
    "audit": {
        "false_alarm_percent": "promise at its limit revoked within 4,000 audits, % of runs",
        "delay_broken": "audits until an endpoint that loses 30 points is found, after 1,000 good ones (median)",
        "delay_seven_points": "the same for a loss of 7 points",
        "labels_false_alarm_percent": "by labels: promise at its limit revoked, % of runs",
        "labels_delay_broken": "by labels: audits until a loss of 30 points is found",
        "labels_delay_seven_points": "by labels: the same for 7 points",
        "runs": "runs",
    },
    "cascade-certificate": {
        "broken_share_max_timeless": "certified loss exceeded, share of new calibrations (by case, worst front)",
        "broken_share_max_clustered": "the same, by patient",
        "delta": "allowed share δ",
        "calibrations": "calibrations a front",
    },
    "cascade-digits": {
        "saving": "fewer operations than the best single model (mean of five splits)",
        "saving_min": "the same, worst split",
        "loss_points": "accuracy lost, points (mean)",
        "loss_points_max": "accuracy lost, points (worst split)",
        "certified_loss_points": "certified loss, points",
        "latency_saving": "measured latency, times lower",
    },
    "cascade-external": {
        "told_right_percent": "promises correctly reported as kept or broken, of those decided, %",
        "correct_percent_min": "the same at the worst site, %",
        "undecided_percent": "promises left undecided, %",
        "promises_judged": "promises judged, over all samples",
        "truly_broken": "promises that a site breaks",
        "utility_of_plan": "utility of the unchanged plan at the other unit",
        "utility_recalibrated": "the same with thresholds refitted on all local tuning patients",
        "utility_local": "the same with models trained there",
        "utility_local_monolith": "utility of a baseline model trained there",
        "patients_to_restore": "local patients until the cascade is within .02 utility of local models",
        "local_patients_needed_monolith": "the same for the baseline model",
    },
    "cascade-gates": {
        "exact_seconds": "exact search over 64,727 recorded cases, s",
        "greedy_gap_percent": "cost of greedy gates above the optimum, mean %",
        "greedy_gap_percent_max": "the same, worst %",
        "saving_percent_AUDIOMNIST": "saving on AUDIOMNIST, %",
        "saving_percent_COMMAND": "saving on COMMAND, %",
        "saving_percent_RAFDB": "saving on RAFDB, %",
        "saving_percent_DIGIT": "saving on DIGIT, %",
        "saving_percent_SHOP": "saving on SHOP, %",
        "saving_percent_YELP": "saving on YELP, %",
    },
    "cascade-llm": {
        "cost_ratio_2pt_600": "cost of plan / reference: 2 points, 600 certifying rows (mean of four logs)",
        "cost_ratio_3pt_600": "3 points, 600 rows",
        "cost_ratio_2pt_1500": "2 points, 1,500 rows",
        "cost_ratio_3pt_1500": "3 points, 1,500 rows",
        "broken_percent_max": "draws with a plan that loses more than it promises, worst cell of 40, %",
        "broken_percent_mean": "the same, mean, %",
        "uncertified_broken_percent": "the same for thresholds tuned without a test, mean, %",
        "within_quarter": "cascades of 52 with a mean error within 0.25 points of the better peer",
        "area_points": "mean error above the better peer, points (mean)",
        "seconds_max": "search of one chain, longest, s",
    },
    "cascade-sepsis": {
        "price_saving": "lower price per patient hour than the baseline that keeps the stage",
        "flops_saving": "fewer operations",
        "loss_points": "accuracy lost, points (negative: better)",
        "certified_loss_points": "certified loss, points",
        "utility": "utility of the cascade",
        "utility_baseline": "utility of the baseline",
        "auprc": "AUPRC of the cascade",
        "auprc_baseline": "AUPRC of the baseline",
        "alerts_per_100h": "alerts per 100 h",
        "lead_hours_gain": "earlier onset prediction, h",
    },
    "cascade-serve": {
        "requests_per_s": "requests/s on one core, with the complete execution path",
        "baseline_requests_per_s": "requests/s of the baseline in FastAPI with joblib",
        "ratio": "ratio",
        "p99_ms": "p99, ms",
        "baseline_p99_ms": "p99 of FastAPI with joblib, ms",
    },
    "cascade-truth": {
        "false_yes_percent": "false yes, worst scenario, %",
        "false_yes_duplicates_percent": "the same, copied rows",
        "false_yes_no_saving_percent": "the same, no saving",
        "power_percent": "real savings found, %",
        "cost_broken_percent": "saving below the promise, %",
        "loss_broken_percent": "loss above it, %",
        "sensitivity_broken_percent": "loss within a label above it, %",
    },
    "estimator": {
        "queries_per_s": "queries/s through three stages",
        "simpy_ratio": "times faster than SimPy",
        "ciw_ratio": "times faster than Ciw",
        "c_loop_ratio": "share of a bare C loop's speed",
        "max_difference_s": "largest difference of a latency, s",
    },
    "engine-fidelity": {
        "full_error_percent_max": "error of mean and p99, vLLM on RTX 4090, nothing fitted, worst %",
        "fitted_error_percent_max": "the same on RTX PRO 6000, one number fitted",
        "unqueued_ttft_error_percent_median": "error of a request's TTFT where nothing queues, median %",
        "stages_ttft_p50_error_percent": "error of p50 TTFT, ten stages on H100 with one constant, %",
        "stages_tpot_error_percent": "error of TPOT there, %",
        "stages_latency_error_percent": "error of mean latency there, %",
        "stage_error_percent_max": "the worst of these three, %",
        "silicon_tpot_raw_percent": "error of TPOT, 354 closed-loop rows, operator tables alone, %",
        "silicon_tpot_corrected_percent": "the same with one factor for each GPU, engine and precision, %",
        "silicon_ttft_percent": "error of TTFT there, %",
        "groups_covered": "groups of four that the interval of the other three covers",
    },
    "engine-live": {
        "ttft_p50_error_percent_max": "error of p50 TTFT, llama.cpp processes of this machine, worst of one and two, %",
        "tpot_mean_error_percent_max": "error of mean TPOT there, %",
        "failed": "failed requests",
        "load_average_before": "load average of the machine before the run",
    },
    "engine-plan": {
        "saving_against_peak_percent": "cheaper than the cheapest steady-state peak that attains as much, %",
        "attainment_percent": "both targets attained on the other half of the trace, %",
        "attained_first_half_percent": "both targets attained on the traffic of the plan, %",
        "attained": "fraction of plans that attain their targets when the same hour is replayed",
    },
    "engine-speed": {
        "requests_per_s": "simulated requests/s, Azure conversation trace",
        "plan_seconds": "plan over 140 engines on 19,366 requests, processor s",
        "rtx4090_ms": "300 requests on RTX 4090, ms",
    },
    "gateway": {
        "overhead_p50_ms": "added to an answer, p50 ms",
        "overhead_p99_ms": "the same, p99 ms",
        "overhead_p50_ms_stream": "added to a whole stream, p50 ms",
        "requests_per_core_s": "answers per processor second",
        "requests_per_core_s_stream": "the same for streams",
        "litellm_ratio": "answers per processor second, times LiteLLM",
        "litellm_ratio_stream": "the same for streams, times",
        "lost": "requests lost under faults, of 1,000 (LiteLLM: 250)",
        "billed_twice": "requests that one model answered twice in full",
        "repeats_billed_twice": "repeats with the same idempotency key that were billed again",
        "billing_error_percent": "bill against the plan, %",
    },
    "pipeline-exports": {
        "targets_executed": "targets with an executed export: Ray Serve, KServe's graph, Triton's message type",
        "share_error_sigma_max": "visits of a stage against the plan, standard deviations, worst stage",
        "queries": "queries through each graph",
        "triton_configs_read": "configurations that Triton's message type reads, with all fields",
        "ray_serve_seconds": "Ray Serve, from start to the last answer, s",
        "kserve_seconds": "KServe's graph, with the build of its router, s",
    },
    "pipeline-live": {
        "attainment_error_points_max": "share of queries on time, live against replayed, worst of ten cases, points",
        "attainment_error_points_mean": "the same, mean",
        "attainment_error_points_max_local": "the same, worst of five cases on local processes",
        "attainment_error_points_max_ray": "the same, worst of five cases on Ray Serve",
        "late_beyond_bound": "queries answered later than four times the target",
        "lost": "queries without a response",
    },
    "pipeline-fidelity": {
        "waiting_p99_error_percent_max": "error of p99, stages that wait for accelerators, worst %",
        "computing_paced_p99_error_percent_max": "error of p99, stages that compute, at the run's batch times, worst %",
        "computing_p99_error_percent_median": "error of p99, stages that compute, by their profile, median %",
        "computing_p99_error_percent_max": "the same, worst %",
        "p99_error_percent_max": "the first two rows, worst %",
        "attainment_error_points_max": "error of attainment, points",
        "lost": "lost queries",
    },
    "pipeline-plan": {
        "coarse_peak_ratio_max": "cheaper than coarse-grained planning for the peak, best of 168 points",
        "coarse_peak_ratio_median": "the same, median",
        "greedy_excess_percent_mean": "greedy plan above the optimum, mean %",
        "greedy_excess_percent_max": "greedy plan above the optimum, worst %",
        "proven_share": "share of plans with a proof",
        "optimum_seconds_max": "longest search, s",
    },
    "pipeline-promise": {
        "kept_share_min": "fresh samples on which a plan with 90 % keeps its target, worst of 12 plans",
        "kept_share_mean": "the same, mean",
        "kept_share_without_min": "without a confidence, worst",
        "kept_share_without_mean": "without a confidence, mean",
        "expected_share_error_mean": "stated against observed share, mean difference",
        "extra_cost_percent": "price of the confidence, mean %",
    },
    "tuner": {
        "equal_miss_cost_ratio_geomean": "cheaper at equal misses than the best baseline of each case (geometric mean)",
        "equal_miss_cases": "cases in which we and a baseline reach 0.1 % misses, of 32",
        "equal_miss_cost_ratio_coarse_geomean": "the same, than a coarse-grained tuner alone",
        "equal_miss_cost_ratio_ray_serve_geomean": "the same, than Ray Serve's policy alone",
        "equal_miss_cases_ray_serve": "cases in which Ray Serve's policy reaches 0.1 % misses",
        "equal_miss_cost_ratio_knative_geomean": "the same, than Knative's policy alone",
        "equal_miss_cases_knative": "cases in which Knative's policy reaches 0.1 % misses",
        "equal_miss_cost_ratio_any_hold_geomean": "than the coarse-grained tuner, with a free choice of hold",
        "peak_cost_ratio_median": "price against a fixed plan for the peak (median)",
    },
    "placement-guards": {
        "longest_wait_s": "longest wait under fifo with its guard, s",
        "longest_wait_by_device_s": "longest wait where fractions are shares of one GPU, s",
        "used_by_device": "fraction of GPUs used where fractions are shares of one GPU",
        "longest_wait_none_by_device_s": "longest wait by device without a policy, s",
        "used_none_by_device": "fraction of GPUs used by device without a policy",
        "used_drf_by_device": "fraction of GPUs used by device under drf with backfill",
        "gpu_use": "GPUs in use under fifo",
        "longest_wait_none_s": "longest wait without a policy, s",
        "used_none": "GPUs in use without a policy",
        "longest_wait_drf_s": "longest wait under drf with backfill, s",
        "drf_backfill_gpu_use": "GPUs in use under drf with backfill",
    },
    "placement-kubernetes": {
        "bound_p95_ms": "waiting pod bound after its resource appears, p95 ms",
        "pods_per_s": "pods/s that request an ephemeral resource",
        "gang_trials": "competing pairs of gangs of eight",
        "partial_gangs": "gangs seen in part",
        "gang_p50_ms": "gang placed, p50 ms",
        "job_gangs": "Jobs and JobSets that are placed as gangs while the controller is killed",
        "kills": "times that it is killed",
        "unfinished_gangs": "gangs that do not end afterwards",
        "longest_part_s": "longest time that a gang was in part around a kill, s",
        "churn_gangs": "gangs during 30 minutes of nodes that come and go",
        "churn_partial_gangs": "of these in part",
        "churn_unfinished": "of these that do not end",
        "leaked_gates": "gates left after the last gang",
        "leaked_names": "names left after the last gang",
        "kueue_latency_ratio": "Job created until bound, over the time of Kueue in the same run",
    },
    "placement-ray": {
        "create_p95_ms": "create an ephemeral resource, p95 ms",
        "delete_p95_ms": "delete one, p95 ms",
        "gang_trials": "competing pairs of gangs",
        "gang_partial": "gangs started in part",
        "gang_deadlocks": "deadlocks",
        "cycles": "ephemeral resources created, used and deleted",
        "raylet_deaths": "raylets that died meanwhile",
        "throughput_ratio": "task throughput against plain Ray tasks",
    },
    "placement-replay": {
        "openb_seconds": "replay of openb (8,152 pods, 1,523 nodes), CPU s",
        "decisions_per_s": "decisions/s",
        "violations": "violations",
        "fairness_error_tasks": "distance from the fair share, tasks",
        "edf_unlike_brute_force": "EDF verdicts that differ from brute force, of 500",
        "policy_lines_median": "lines of a policy, median",
        "limit_growth": "CPU time of 12,000 tasks over that of 3,000 under limit, five traces each, offered load 0.9",
        "gang_growth": "the same of gangs of four",
        "limit_growth_overloaded": "the same under limit at an offered load of 1.1, where the queue grows",
        "gang_growth_overloaded": "the same of gangs of four",
    },
    "placement-verify": {
        "bugs_found": "seeded bugs of 30 that are found",
        "false_alarms": "findings in 21 guarded compositions",
        "public_bugs": "public bugs of 6 that are found, with a clean fixed variant",
        "seconds": "CPU s for all shipped policies and pairs",
        "transitions_per_s": "transitions a CPU second",
        "seconds_four_in_flight": "2 nodes, 3 kinds, 4 jobs in flight, complete, CPU s",
        "seconds_six_in_flight": "the same with 6 jobs",
    },
    "placement-whatif": {
        "order_equal_percent": "pairs of workloads that start in the order of real Kueue, %",
        "start_error_percent_median": "error of the start after a change of quota, median %",
        "start_error_p90": "the same, p90, fraction",
        "start_error_median_s": "error of the start, median s",
        "unchanged_quota_error_median": "error of a replay without the change, median",
        "never_agree": "workloads that start on both sides or on neither",
        "instances": "random cohorts",
    },
    "tuning-plan": {
        "static_ratio_tight": "cheaper than the best static cluster at tight deadlines (mean)",
        "static_ratio_tight_max": "the same, best",
        "greedy_excess_percent_max": "greedy plan above the cheapest plan found, worst %",
        "exact_seconds_64": "planning 64 trials, s",
        "exact_seconds_256": "planning 256 trials, s",
        "on_time_promised": "promised share on time",
        "on_time_seen": "simulated share on time, same noise family",
        "on_time_seen_bad_profile": "the same, with a wrong profile",
    },
    "tuning-promise": {
        "seen_percent_105": "runs on time, deadline at 1.05 times the earliest promise, %",
        "cost_ratio_105": "dollars of all runs over those of hindsight",
        "open_percent_105": "runs on time if the plan is never changed, %",
        "seen_percent_130": "runs on time at 1.3 times, %",
        "cost_ratio_130": "dollars over those of hindsight",
        "open_percent_130": "on time if the plan is never changed, %",
        "seen_percent_200": "runs on time at 2 times, %",
        "cost_ratio_200": "dollars over those of hindsight",
        "open_percent_200": "on time if the plan is never changed, %",
        "soonest_ratio": "earliest promise over that of a planner that knows every mean pace",
        "over_cap_percent": "runs above the 95 % quantile of the simulated bill, %",
    },
    "tuning-spot": {
        "on_time_percent_min": "runs on time, worst market, job and deadline, %",
        "on_time_percent": "runs on time, all, %",
        "cost_ratio_max": "dollars over those of the same plan in hindsight, worst market, job and deadline",
        "cost_ratio": "the same, all runs",
        "on_demand_ratio": "dollars over those of the on-demand plan",
        "cap_kept_percent": "runs within the 95 % quantile of the simulated bill, %",
        "runs": "runs",
    },
    "tuning-replay": {
        "cost_ratio_asha": "dollars of all runs against Ray Tune's ASHA, idle instances released",
        "cost_ratio_asha_median": "the same, median of runs",
        "cost_ratio_asha_worst_task": "the same, worst task",
        "cost_ratio_asha_promised": "the same, where a promise was possible",
        "cost_ratio_asha_promised_worst_task": "the same, worst task",
        "on_time_share": "share on time",
        "reached_share": "share that reached ASHA's accuracy",
    },
    "tuning-chaos": {
        "runs": "runs, each with faults of its own",
        "aborted": "runs that ended with an error",
        "orphans": "instances that were left running",
        "over_cap": "runs with a bill above the cap",
        "on_time_percent": "runs in time, without the fifth of them that got too low a cap, %",
        "stopped_by_cap": "runs that the cap stopped",
        "crashes": "kills of the driver",
        "repeated_iterations": "finished iterations that ran again",
    },
    "tuning-dropin": {
        "scripts": "scripts with three new lines: one for Optuna, one for Ray Tune",
        "on_time": "fraction of them that keep a deadline too short for their search",
        "winners_equal": "fraction of killed searches with the winner of an undisturbed one",
        "repeated_iterations": "finished iterations that ran again",
        "kills_optuna": "kill -9 of the script (Optuna)",
        "runs_optuna": "searches that were killed, each run to its end (Optuna)",
        "changed_lines_optuna": "new lines in the script (Optuna)",
        "other_winners_optuna": "searches with another winner than an undisturbed one (Optuna)",
        "finished_iterations_repeated_optuna": "finished iterations that ran again (Optuna)",
        "iterations_repeated_optuna": "iterations that ran again, unfinished ones included (Optuna)",
        "iterations_optuna": "iterations of all searches (Optuna)",
        "late_optuna": "searches that passed a short deadline and its grace (Optuna)",
        "kills_ray": "kill -9 of the script (Ray Tune)",
        "runs_ray": "searches that were killed, each run to its end (Ray Tune)",
        "changed_lines_ray": "new lines in the script (Ray Tune)",
        "other_winners_ray": "searches with another winner than an undisturbed one (Ray Tune)",
        "finished_iterations_repeated_ray": "finished iterations that ran again (Ray Tune)",
        "iterations_repeated_ray": "iterations that ran again, unfinished ones included (Ray Tune)",
        "iterations_ray": "iterations of all searches (Ray Tune)",
        "late_ray": "searches that passed a short deadline and its grace (Ray Tune)",
    },
    "tuning-fidelity": {
        "time_error_percent_max": "error of the predicted time, worst %",
        "cost_error_percent_max": "error of the predicted cost, worst %",
        "plans": "plans carried out, on local processes and on Ray",
    },
    "tuning-kills": {
        "kills": "kills of the driver on local processes",
        "kills_ray": "kills of the driver on Ray",
        "other_winners": "runs with another winner",
        "finished_iterations_repeated": "finished iterations repeated",
        "ledger_error_percent": "error of the spend ledger, %",
    },
    "board-rates": {
        "board_error_percent_median": "latency of 20 networks on ZCU104 and ZCU102 boards, held-out median error, %",
        "board_error_percent_max": "the same, worst network, %",
        "board_error_uncalibrated_percent_median": "the same without calibration of host time and bandwidth, %",
    },
    "fastswitch": {
        "traffic_saving_mobilenetv3": "off-chip traffic saved, MobileNetV3, 1.69 MiB buffer",
        "latency_saving_mobilenetv3_4": "latency saved at 4 GB/s, against loading layer by layer",
        "latency_saving_fair_mobilenetv3_4": "the same, against equal silicon that prefetches",
        "latency_saving_fair_mobilenetv3_1": "the same at 1 GB/s",
        "traffic_saving_resnet50": "off-chip traffic saved, ResNet-50",
        "tiling_error_percent_max": "DRAM bytes of 200 random layers against exhaustive tilings, largest error, %",
        "board_error_percent_median": "latency on boards, held-out median error, %",
        "scalesim_cycle_error_percent": "error of compute cycles against SCALE-Sim, %",
        "scalesim_ratio": "times faster than SCALE-Sim, the same layers",
        "queries_per_s": "simulated queries/s",
    },
    "supernet-ablation": {
        "shared_statistics_points": "worth of per-subnet statistics, points",
        "distillation_only_points": "worth of labels, points",
        "sampled_nets_points": "worth of training every member each step, points",
        "independent_list_points": "worth of compound coupling, points",
    },
    "supernet-members": {
        "both_targets_planned": "requests in time and accurate enough on later traces, planned residency",
        "both_targets_lru": "the same with LRU eviction",
        "both_targets_lfu": "the same with LFU eviction",
        "both_targets_best_single": "the same with the best single model in memory",
        "load_seconds_planned": "seconds of loading on a trace, planned residency",
        "load_seconds_lru": "the same with LRU eviction",
    },
    "supernet-modules": {
        "elastic": "networks that become a family without code of the user's",
        "networks": "networks tried",
        "onnx_difference_max": "largest difference of a member's output from ONNX Runtime's, over the largest output",
        "sharing_cost_points_max": "accuracy lost by sharing weights, worst member, mean of three seeds, points",
        "sharing_cost_error_points": "standard error of that, points",
        "sharing_costs_surely_beyond_half": "members that sharing costs more than 0.5 points at 95 %",
        "same_groups_cost_points_max": "the largest cost on unseen beats of the training patients, points",
        "same_groups_cost_error_points": "standard error of that, points",
        "dominated": "members that an ordinary network of equal MACs and steps beats at 95 %",
    },
    "supernet-serve": {
        "goodput_ratio_max": "goodput against the best member alone that is as accurate, best of ten real windows",
        "goodput_ratio_median": "the same, median window",
        "goodput_ratio_bound_median": "the same of a policy with all requests in time, which none exceeds",
        "goodput_in_time_percent_min": "requests that the family answers in time, worst of the ten windows, %",
        "goodput_ratio_near_median": "the same where 0.1 points of accuracy count as equal",
        "goodput_ratio_conv": "the same on the busiest window of the calmer trace",
        "ece_points_max": "expected calibration error on unseen patients, worst member, points",
        "ece_excess_beyond_chance": "members with confidences off by more than the draw of patients explains",
        "attainment_ratio_measured": "attainment against the best fixed member of equal accuracy, measured, best trace",
        "attainment_ratio_measured_median": "the same, median trace",
        "attainment_ratio": "the same in a simulation, best trace",
        "accuracy_gain_points_measured": "accuracy gained at equal attainment, measured, points, best trace",
        "accuracy_gain_points_measured_median": "the same, median trace",
        "attainment_ratio_shedding_measured": "attainment against fixed members that shed, best trace",
    },
    "supernet-switch": {
        "first_answer_penalty_us": "first answer after a change of member, less the next of the same, p50 µs",
        "views_ratio": "batch of 32 on views against contiguous copies, worst member",
        "memory_ratio": "memory that a process holds of the shipped heart-beat family, against six separate modules",
        "memory_ratio_sessions": "the same, against six sessions of ONNX Runtime",
        "weights_ratio": "the same of weights and statistics alone, against separate modules",
        "weights_ratio_twelve": "the same for twelve members of its stages",
        "bind_us": "building the views of a member, µs",
    },
    "supernet-train": {
        "seconds": "training of the heart-beat family, s on one core",
        "accuracy_max": "accuracy of the largest member, %",
        "front_points": "members, each surely more accurate than the one before it",
        "sharing_cost_min_points": "weight-sharing gap, smallest member, points",
        "sharing_cost_mid_points": "weight-sharing gap, middle member, points",
        "sharing_cost_max_points": "weight-sharing gap, largest member, points",
        "converged_cost_mid_points": "the same, middle member against a network trained twice as long",
        "compound_time_ratio": "training time against progressive shrinking",
        "inter_patient_accuracy_max": "accuracy on unseen patients, largest member, %",
    },
    "scale": {
        "estimator_growth": "growth exponent of the latency estimator",
        "placement_growth": "growth exponent of placement replays",
        "tuning_growth": "growth exponent of tuning plans",
        "gates_growth": "growth exponent of the gate search",
    },
    "serve-artifact": {
        "graph_rows_per_s": "rows/s of the cascade as one ONNX graph, requests of 64 rows",
        "cascade_rows_per_s": "rows/s of the cascade server",
        "ratio": "ratio",
        "ratio_single_rows": "ratio, requests of one row",
        "differing": "answers of 1,797 digits that differ",
        "differing_api_logs": "answers of 1,797 recorded cases that differ",
    },
    "serve-load": {
        "requests_per_s": "single rows/s on one core",
        "best_product_requests_per_s": "the best product in the same run",
        "product_ratio": "ratio",
        "starlette_ratio": "ratio to a hand-built Starlette server",
        "binary_requests_per_s": "single rows/s as raw bytes",
        "binary_product_ratio": "ratio to the best product, raw bytes",
        "grpc_requests_per_s": "single rows/s over gRPC",
        "best_grpc_product_requests_per_s": "the best product over gRPC",
        "grpc_product_ratio": "ratio over gRPC",
        "empty_grpc_requests_per_s": "an empty servicer of grpc.aio",
        "p99_ms_half_load": "p99 at half load, ms",
    },
    "serve-abuse": {
        "cost_oracle_max": "processor time per byte of the dearest of 30 attacks, times that of a plain request",
        "rss_growth_mib_max": "memory growth under attack, MiB",
        "good_client_goodput_share_min": "requests of a well-behaved client in time, worst attack (busy machine)",
    },
    "serve-overload": {
        "goodput_ratio": "goodput at five times the peak load, share of the peak",
        "rejected_p99_ms": "p99 of a rejection, ms",
        "recovery_s": "recovery after the overload, s",
        "memory_growth_percent": "memory growth, %",
        "lost": "lost requests",
    },
    "startup": {
        "help_ms": "`unfold --help`, ms",
        "check_ms": "`unfold check`, slowest kind, ms",
        "installed_mb": "installed without extras, MB",
    },
}


def pages(folder: Path) -> dict[str, str]:
    """Return the text of every page of figures by its path."""
    by_kind: dict[str, list[str]] = {kind: [] for kind in TITLES}
    for name in names(folder):
        by_kind[kind_of(name)].append(name)
    made = {
        f"docs/benchmarks/{kind}.md": _page(folder, TITLES[kind], benchmarks) for kind, benchmarks in by_kind.items()
    }
    links = "\n".join(
        f"- [{TITLES[kind].capitalize()}]({kind}.md): {', '.join(code(name) for name in benchmarks)}"
        for kind, benchmarks in by_kind.items()
    )
    return made | {"docs/benchmarks/index.md": INDEX.format(pages=links, **_missed_targets(folder))}


def _page(folder: Path, title: str, benchmarks: Sequence[str]) -> str:
    """Return a page; what all its benchmarks were measured on stands in its introduction."""
    conditions = [_list_conditions(data) for name in benchmarks if (data := _result(folder, name))]
    shared = [item for item in conditions[0] if all(item in others for others in conditions)] if conditions else []
    common = f"All were measured on {', '.join(shared)}.\n\n" if shared else ""
    return INTRO.format(title=title) + common + "\n".join(section(folder, name, shared) for name in benchmarks)


def _missed_targets(folder: Path) -> dict[str, Any]:
    """Return how many targets there are, how many are missed, and a table of these."""
    rows, judged = [], 0
    for name in names(folder):
        data = _result(folder, name)
        for metric, target in data.get("aims", {}).items():
            value = data["metrics"].get(metric)
            judged += value is not None
            if is_missed(value, target):
                link = f"[{name}]({kind_of(name)}.md#{name})"
                cause = CAUSES.get(f"{name} {metric}", "")
                rows.append([link, code(metric), number(value), _written(target), cause])
    return {
        "missed": len(rows),
        "judged": judged,
        "table": table(["benchmark", "metric", "unfold", "target", "cause"], rows),
    }


def is_missed(value: Any, target: str) -> bool:
    """Whether a figure misses its target: "≤ 5", "< 5", "≥ 5", "5" or "90–97"; text after the number is a remark."""
    if not isinstance(value, (int, float)):
        return False
    between = re.fullmatch(rf"({FIGURE})–({FIGURE})", target)
    if between:
        return not float(between[1]) <= value <= float(between[2])
    sign, limit = re.match(rf"([<>≤≥]?) ?({FIGURE})", _written(target)).groups()  # type: ignore[union-attr]
    bound = float(limit.replace(",", ""))
    is_equal = math.isclose(value, bound, rel_tol=1e-9)
    is_kept = {
        "": is_equal,
        "<": value < bound,
        ">": value > bound,
        "≤": value <= bound or is_equal,
        "≥": value >= bound or is_equal,
    }
    return not is_kept[sign]


def _written(target: str) -> str:
    return target.replace("<=", "≤").replace(">=", "≥")


def kind_of(name: str) -> str:
    """Return the page that a benchmark stands on."""
    kind = OTHER_KINDS.get(name) or name.partition("-")[0]
    return kind if kind in TITLES else "serving"


def section(folder: Path, name: str, shared: Collection[str] = ()) -> str:
    """Return what a page shows of one benchmark: its question, headline rows and conditions, but the shared ones."""
    source = (folder / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0].replace("``", "`")
    head = f"## {name}\n\n{summary}\n"
    data = _result(folder, name)
    if not data:
        return f"{head}\nNot measured yet: there is no `benchmarks/results/{name}.json`.\n"
    return "\n".join((head, _headlines(name, data), _provenance(name, data, shared)))


def _result(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "results" / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _headlines(name: str, data: Mapping[str, Any]) -> str:
    targets: Mapping[str, str] = data.get("aims", {})
    labels = dict(HEADLINES.get(name) or dict.fromkeys(list(data["metrics"])[:10], ""))
    labels |= {metric: "" for metric in targets if metric not in labels}
    metrics = [metric for metric in labels if metric in data["metrics"]]
    peers = {peer: values for peer, values in data.get("peers", {}).items() if any(key in values for key in metrics)}
    rows = [
        [code(metric), labels[metric], number(data["metrics"][metric])]
        + [number(values.get(metric)) for values in peers.values()]
        + ([_judged(data["metrics"][metric], targets.get(metric, ""))] if targets else [])
        for metric in metrics
    ]
    return table(["metric", "meaning", "unfold", *peers, *(["target"] if targets else [])], rows)


def _judged(value: Any, target: str) -> str:
    return f"{_written(target)}, **missed**" if target and is_missed(value, target) else _written(target)


def _provenance(name: str, data: Mapping[str, Any], shared: Collection[str]) -> str:
    own = ", ".join(item for item in _list_conditions(data) if item not in shared)
    complete = f"[all figures and notes](../../benchmarks/results/{name}.json)"
    return f"Measured on {own}: {complete}.\n" if own else f"See {complete}.\n"


def _list_conditions(data: Mapping[str, Any]) -> list[str]:
    """List what a benchmark was measured on: machine, versions, extent and seed."""
    machine = [CONDITIONS.get(key, f"{key} {{}}").format(value) for key, value in data["machine"].items()]
    versions = [f"{key} {value}" for key, value in data["versions"].items()]
    return [*machine, *versions, "quick run" if data.get("quick") else "full run", f"seed {data.get('seed', 0)}"]


def number(value: Any) -> str:
    """Return a figure with four significant digits, a missing one as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
