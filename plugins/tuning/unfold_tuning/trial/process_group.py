"""Ranks of a trial that spans instances, in the conventions of ``torchrun``: one process per accelerator.

The training function reads them from its environment, as ``torch.distributed.init_process_group`` does:
``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``LOCAL_WORLD_SIZE``, ``GROUP_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``, and
``UNFOLD_HOSTS``, the address of every instance. A trial within one instance is one process and has none of them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

HOSTS_VARIABLE = "UNFOLD_HOSTS"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRank:
    """One process of a trial that spans instances.

    Attributes:
        rank: Its number in the trial; that of the process which reports is 0.
        world_size: Processes of the trial.
        local_rank: Its number on its instance.
        local_world_size: Processes of the trial on its instance.
        host: Index of its instance in ``hosts``.
        hosts: Address of each instance; the first is the rendezvous.
        port: A port of the first instance that was free when the trial started.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    host: int
    hosts: tuple[str, ...]
    port: int

    def build_environment(self) -> dict[str, str]:
        """Build the environment variables of the process."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "GROUP_RANK": str(self.host),
            "MASTER_ADDR": self.hosts[0],
            "MASTER_PORT": str(self.port),
            HOSTS_VARIABLE: ",".join(self.hosts),
        }


def build_ranks(workers: int, accelerators: int, hosts: Sequence[str], port: int) -> tuple[ProcessRank, ...]:
    """Build the ranks of a trial: instances are filled in order, and the last one may have fewer processes.

    Args:
        workers: Accelerators of the trial.
        accelerators: Accelerators of an instance.
        hosts: Address of each instance of the trial.
        port: A free port of the first one.
    """
    return tuple(
        ProcessRank(
            rank=rank,
            world_size=workers,
            local_rank=rank % accelerators,
            local_world_size=min(accelerators, workers - rank // accelerators * accelerators),
            host=rank // accelerators,
            hosts=tuple(hosts),
            port=port,
        )
        for rank in range(workers)
    )


def set_environment(rank: ProcessRank | None) -> None:
    """Set the variables of a rank in this process; without one, the process keeps its environment."""
    if rank is not None:
        os.environ.update(rank.build_environment())


def find_free_port(address: str = "") -> int:
    """Find a TCP port of this machine that is free now; any interface if no address is given."""
    with socket.socket() as listener:
        listener.bind((address, 0))
        return int(listener.getsockname()[1])
