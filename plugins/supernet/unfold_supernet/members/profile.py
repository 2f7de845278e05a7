"""The profile of a list of members: each file is measured once, and the figures are stored in the run by its digest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unfold_supernet.members.files import CheckedFile, MemberFile, check_files, reject, reject_classes
from unfold_supernet.members.isolated_measurement import ProbeResult, probe_file
from unfold_supernet.members.runtime import MemberSource
from unfold_supernet.scheduling.policies import SubnetProfile, build_profile
from unfold_supernet.scheduling.residency import MemberCost
from unfoldkit.api import Diagnostic, Progress, RunDir, UnfoldError, user_error
from unfoldkit.safe_io.files import parse_object

PROFILE_FILE = "members.json"
PROFILE_VERSION = 6
"""Increase it when the measurement changes, so that members are measured again."""
ORDER_BATCH = 32
"""Members are ordered by the latency of so many rows; a model of fewer rows computes them in parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberList:
    """A list of members as the spec names it.

    Attributes:
        name: Name of the spec.
        files: The models.
        classes: Names of the classes; empty for their numbers.
        memory_bytes: Memory for all of them together; ``None`` for as much as they need.
    """

    name: str
    files: tuple[MemberFile, ...]
    classes: tuple[str, ...]
    memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberProfiles:
    """Measured members; all tuples are in one order, the fastest first.

    Attributes:
        profiles: Accuracy and latency by batch size.
        costs: Memory and load time.
        sources: What is needed to run them.
        classes: Names of the classes.
        size: Shape of an input without rows.
        memory_bytes: Memory for all of them together; ``None`` for as much as they need.
        delayed: Members with a measurement that other programs delayed.
    """

    profiles: tuple[SubnetProfile, ...]
    costs: tuple[MemberCost, ...]
    sources: tuple[MemberSource, ...]
    classes: tuple[str, ...]
    size: tuple[int, ...]
    memory_bytes: int | None
    delayed: tuple[str, ...] = ()

    @property
    def needed_bytes(self) -> int:
        """Memory of all members."""
        return sum(cost.bytes for cost in self.costs)

    @property
    def fits(self) -> bool:
        """Whether all members fit the memory."""
        return self.memory_bytes is None or self.needed_bytes <= self.memory_bytes

    @property
    def front(self) -> tuple[str, ...]:
        """Members that no faster member equals in accuracy."""
        names: list[str] = []
        best = -1.0
        for profile in self.profiles:
            if profile.accuracy > best:
                names.append(profile.name)
                best = profile.accuracy
        return tuple(names)


def measure_members(
    problem: MemberList, directory: RunDir, progress: Progress, *, again: bool = False
) -> MemberProfiles:
    """Check and measure the members; what the run already holds is not measured again, even after an error.

    Args:
        problem: The members.
        directory: The run, which keeps the figures.
        progress: Receives how many are measured.
        again: Whether to measure those again that other programs delayed.

    Raises:
        UnfoldError: A file cannot be served, or no member fits the memory (exit code 2).
    """
    checked = check_files(problem.files, problem.classes)
    probes = _read_probes(directory)
    problems: list[Diagnostic] = []
    for index, file in enumerate(checked):
        progress("measure members", index, len(checked))
        if file.digest not in probes or (again and probes[file.digest].is_busy):
            try:
                probes[file.digest] = probe_file(file)
            except UnfoldError as error:
                problems += error.diagnostics
    progress("measure members", len(checked), len(checked))
    measured = {file.digest: asdict(probes[file.digest]) for file in checked if file.digest in probes}
    document = {"version": PROFILE_VERSION, "probes": measured}
    directory.write(PROFILE_FILE, (json.dumps(document) + "\n").encode())
    if problems:
        raise UnfoldError(*problems)
    return _collect_profiles(problem, checked, probes)


def read_members(problem: MemberList, directory: RunDir) -> MemberProfiles:
    """Read the members that a run has measured.

    Raises:
        UnfoldError: A file cannot be served, or was changed or added since (exit code 2).
    """
    checked, probes = check_files(problem.files, problem.classes), _read_probes(directory)
    missing = [file.member for file in checked if file.digest not in probes]
    if missing:
        raise reject(missing[0], "it is not measured in this run yet", "unfold profile SPEC")
    return _collect_profiles(problem, checked, probes)


def _read_probes(directory: RunDir) -> dict[str, ProbeResult]:
    if not directory.has(PROFILE_FILE):
        return {}
    with directory.decoding(PROFILE_FILE, "measurements of members") as content:
        document = parse_object(content)
        if document["version"] != PROFILE_VERSION:
            return {}
        return {digest: _parse_probe(fields) for digest, fields in document["probes"].items()}


def _parse_probe(fields: dict[str, Any]) -> ProbeResult:
    return ProbeResult(
        output_name=str(fields["output_name"]),
        classes=int(fields["classes"]),
        is_probability=bool(fields["is_probability"]),
        load_s=float(fields["load_s"]),
        bytes=int(fields["bytes"]),
        seconds={int(batch): float(seconds) for batch, seconds in fields["seconds"].items()},
        waiting=float(fields["waiting"]),
    )


def _collect_profiles(
    problem: MemberList, checked: Sequence[CheckedFile], probes: dict[str, ProbeResult]
) -> MemberProfiles:
    """Collect the figures of the members, and check that they have the same classes and that one of them fits."""
    found = [probes[file.digest] for file in checked]
    expected = len(problem.classes) or found[0].classes
    for file, probe in zip(checked, found, strict=True):
        if probe.classes != expected:
            source = "the spec names" if problem.classes else f"{checked[0].member.path.name} has"
            message = f"output {probe.output_name} has {probe.classes} classes, {source} {expected}"
            raise reject(file.member, message, "list models of one task, with equal classes")
    names = _name_classes(problem.classes, [file for file in checked if len(file.labels) == expected])
    smallest = min(probe.bytes for probe in found)
    if problem.memory_bytes is not None and smallest > problem.memory_bytes:
        message = f"the smallest member needs {smallest / 1e6:,.1f} MB of memory"
        raise user_error(message, key="serving.memory", hint=f"at least {smallest / 1e6:.1f} MB")
    profiles = [
        build_profile(file.member.name, file.member.accuracy, probe.seconds)
        for file, probe in zip(checked, found, strict=True)
    ]
    order = sorted(range(len(profiles)), key=lambda index: profiles[index].estimate_split_latency(ORDER_BATCH))
    sources = [
        MemberSource(file=file, output_name=probe.output_name, is_probability=probe.is_probability)
        for file, probe in zip(checked, found, strict=True)
    ]
    return MemberProfiles(
        profiles=tuple(profiles[index] for index in order),
        costs=tuple(MemberCost(found[index].bytes, found[index].load_s) for index in order),
        sources=tuple(sources[index] for index in order),
        classes=names or tuple(map(str, range(expected))),
        size=checked[0].size,
        memory_bytes=problem.memory_bytes,
        delayed=tuple(profiles[index].name for index in order if found[index].is_busy),
    )


def _name_classes(classes: tuple[str, ...], stating: Sequence[CheckedFile]) -> tuple[str, ...]:
    """Name the classes: as the spec does, or as the files state; empty if neither names them.

    Args:
        classes: Of the spec; may be other names.
        stating: Files that state a name for each class.
    """
    names = classes or (stating[0].labels if stating else ())
    for file in stating:
        if file.labels != names and not classes:
            raise reject_classes(file, names)
    return names
