"""A Ray cluster of four nodes: prints its address, and lives until its input ends."""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 4, "num_gpus": 4, "resources": {"eph": 100_000}}


def main() -> None:
    """Start, tell, wait, stop."""
    head = {**NODE, "include_dashboard": False, "labels": {"unfold-name": "n0"}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for index in (1, 2, 3):
            cluster.add_node(**NODE, labels={"unfold-name": f"n{index}"})
        sys.stdout.write(f"{cluster.address}\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
