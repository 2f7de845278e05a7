"""A Ray cluster of four nodes: prints its address, and lives until its input ends."""

from __future__ import annotations

import contextlib
import sys

from ray.cluster_utils import Cluster

TRIES = 4
WAIT = 120.0
# no test looks at Ray's pages or logs, nor wants further nodes: three processes less to start
BARE = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
NODE = {"num_cpus": 4, "num_gpus": 4, "resources": {"eph": 100_000}}


def main() -> None:
    """Start, report, wait, stop."""
    cluster = started()
    try:
        sys.stdout.write(f"{cluster.address}\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        cluster.shutdown()


def started() -> Cluster:
    """Return four nodes that run; Ray gives a node thirty seconds, which a busy machine may exceed."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(Exception):
            return start()
    return start()


def start() -> Cluster:
    """Start four nodes.

    Raises:
        Exception: one did not come in time; Ray has no better name for that.
    """
    head = {**NODE, **BARE, "labels": {"unfold-name": "n0"}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for index in (1, 2, 3):
            cluster.add_node(wait=False, **NODE, labels={"unfold-name": f"n{index}"})
        cluster.wait_for_nodes(WAIT)
    except Exception:
        cluster.shutdown()
        raise
    return cluster


if __name__ == "__main__":
    main()
