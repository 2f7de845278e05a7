"""What Ray lists about the deployments of pipelines: replicas that run, why others do not start, and orphans."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

MAX_REASON_CHARACTERS = 500
_ROUTINE = ("Upscaling from", "Downscaling from")
"""Beginnings of messages that report a change and no fault."""
_COLORS = re.compile(r"\x1b\[[\d;]*m")
_FRAME = re.compile(r'\s*File "')
_APP = re.compile(r"unfold-(?P<job>[0-9a-f]{8})-[0-9a-f]{8}-")
_OWN_ERROR = "unfoldkit.errors.UnfoldError: "


@dataclass(frozen=True, slots=True)
class DeploymentListing:
    """The deployment of a stage.

    Attributes:
        running: Identities of the replicas that run.
        fault: Why others do not start, as far as Ray Serve reports it; empty if it reports no fault.
    """

    running: frozenset[str] = frozenset()
    fault: str = ""


def list_deployments(apps: Sequence[str]) -> dict[str, DeploymentListing]:
    """Return the deployment of each application that exists; an application holds one stage."""
    from ray.serve.context import _get_global_client

    details = _get_global_client().get_serve_details()["applications"]
    listings = {}
    for app in apps:
        deployments = details[app]["deployments"].values() if app in details else ()
        for deployment in deployments:
            states = {replica["replica_id"]: replica["state"] for replica in deployment["replicas"]}
            running = frozenset(replica for replica, state in states.items() if state == "RUNNING")
            listings[app] = DeploymentListing(running, summarize_fault(deployment["message"]))
    return listings


def name_applications(job: str, instance: str) -> str:
    """Return what the names of the applications of one service begin with.

    Args:
        job: Ray's identity of the process that serves.
        instance: Distinguishes the services of a process.
    """
    return f"unfold-{job}-{instance}"


def find_orphans(apps: Iterable[str], ended_jobs: Container[str]) -> list[str]:
    """Return the applications of services that have ended without deleting them, as a process that is killed."""
    matches = [(app, _APP.match(app)) for app in apps]
    return [app for app, match in matches if match is not None and match["job"] in ended_jobs]


def list_orphans() -> list[str]:
    """Return the applications on this cluster that :func:`find_orphans` finds; none for a Ray client."""
    from ray import serve
    from ray._private.state import jobs
    from ray.util.client import ray as client

    if client.is_connected():
        # it cannot read the table of jobs
        return []
    return find_orphans(serve.status().applications, {job["JobID"] for job in jobs() if job["IsDead"]})


def summarize_fault(message: str) -> str:
    """Return the fault that a status message of Ray Serve reports: of a traceback, its exception."""
    lines = [line for line in _COLORS.sub("", message).splitlines() if line.strip()]
    if not lines or message.startswith(_ROUTINE):
        return ""
    frames = [index for index, line in enumerate(lines) if _FRAME.match(line)]
    if frames:
        reason = _find_exception(lines[frames[-1] + 1 :])
    else:
        # a preamble of Ray's precedes the fault of a replica
        reason = next((lines[index + 1] for index, line in enumerate(lines[:-1]) if line.endswith("Error:")), lines[0])
    return reason.strip().removeprefix(_OWN_ERROR)[:MAX_REASON_CHARACTERS]


def _find_exception(lines: Iterable[str]) -> str:
    """Return the first line of an exception, which follows the indented source of its last frame."""
    return next((line for line in lines if not line[0].isspace()), "")
