"""`unfold plan` of several specs: each in turn, whatever became of the one before; the exit code is the worst."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unfoldkit.cli import console, output, plugin_registry
from unfoldkit.cli.commands.run import carried_out, opened, perform, run_folder, tell
from unfoldkit.cli.request import Request
from unfoldkit.descriptors import Renderer, resolve
from unfoldkit.errors import ExitCode, UnfoldError, escape_unprintable, user_error
from unfoldkit.registry import Registry
from unfoldkit.render import combine
from unfoldkit.report import Report
from unfoldkit.run_directory import encoded, write_atomically
from unfoldkit.spec.resolve import Loaded, spec_hash

ENDS = (ExitCode.INTERRUPTED, ExitCode.CLOSED_PIPE)
WORDS = {ExitCode.YES: "yes", ExitCode.NO: "no"}


@dataclass(frozen=True, slots=True)
class Several:
    """What the answers of one call have in common.

    ``pages`` collects what is written in one piece at the end; ``runs`` says which spec each run was last kept for.
    """

    request: Request
    registry: Registry
    renderer: Renderer
    stdin: str = ""
    pages: list[str] = field(default_factory=list)
    runs: dict[Path, tuple[str, str]] = field(default_factory=dict)

    @property
    def in_one_piece(self) -> bool:
        """Whether the pages make one document, and none can be written before all are there."""
        return self.request.out is not None or self.renderer.name in combine.DOCUMENTS

    def answer(self, spec: str) -> ExitCode:
        """Plan one spec and write, or keep, what its report looks like; mistakes too, where the format has them.

        Raises:
            UnfoldError: the spec is at fault, and the format has no place for mistakes.
        """
        request = replace(self.request, spec=spec)
        try:
            loaded = opened(request, self.registry, self.stdin)
            self._claim(request, loaded)
            report, code = carried_out(request, self.registry, loaded)
        except UnfoldError as error:
            page = output.mistakes(self.renderer.name, error.diagnostics)
            if page is None:
                raise
            self._write(page)
            return error.code
        self._deliver(report)
        tell(self.registry, report, code)
        return code

    def finish(self) -> None:
        """Write the document, if it is one."""
        if not self.in_one_piece:
            return
        content = combine.joined(self.renderer.name, self.pages)
        if self.request.out is None:
            console.write_report(content)
        else:
            write_atomically(self.request.out, encoded(content))
            console.say(f"wrote {self.request.out}")

    def _claim(self, request: Request, loaded: Loaded) -> None:
        """Say that the run of an earlier spec is written over, as both have one name."""
        folder, made_from = run_folder(request, loaded), spec_hash(loaded.spec)
        before, kept = self.runs.get(folder, (request.spec, made_from))
        if kept != made_from and not request.dry_run:
            told = f"{request.spec}: writes over the run of {before} in {folder} (another name keeps both)"
            console.say(escape_unprintable(told))
        self.runs[folder] = request.spec, made_from

    def _deliver(self, report: Report) -> None:
        if self.in_one_piece:
            self.pages.append(resolve(self.renderer.render)(report))
            return
        if self.pages:
            console.write_report(combine.BETWEEN[self.renderer.name])
        self.pages.append("")
        output.deliver(report, self.renderer, None)

    def _write(self, page: str) -> None:
        self.pages.append(page)
        if not self.in_one_piece:
            console.write_report(page)


def perform_all(request: Request, specs: Sequence[str], stdin: str = "") -> int:
    """Carry out a verb for each spec and return the worst exit code; Ctrl-C and a closed pipe end it at once.

    Raises:
        UnfoldError: an option or the format is for one spec only.
    """
    if len(specs) == 1:
        return perform(replace(request, spec=specs[0]), stdin)
    _for_one_only(request)
    output.spare(request.out, *specs, request.replay)
    registry = plugin_registry.registry(builtin_only=request.builtin_only)
    renderer = output.choose(registry, request.format, request.out)
    if renderer.name not in combine.BETWEEN:
        raise user_error(f"--format {renderer.name} takes one spec", hint=f"for several: {', '.join(combine.BETWEEN)}")
    several = Several(request, registry, renderer, stdin)
    codes: list[int] = []
    for spec in specs:
        codes.append(console.guarded(_later(several, spec)))
        if codes[-1] in ENDS:
            return codes[-1]
    several.finish()
    console.say(_summary(specs, codes))
    return max(codes)


def _later(several: Several, spec: str) -> Callable[[], int]:
    return lambda: several.answer(spec)


def _for_one_only(request: Request) -> None:
    for flag, value in (("--run", request.run), ("--check", request.check)):
        if value is not None:
            raise user_error(f"{flag} {value} is for one spec", hint="plan one at a time")


def _summary(specs: Sequence[str], codes: Sequence[int]) -> str:
    told = [
        f"{WORDS.get(ExitCode(code), 'failed')}: {escape_unprintable(spec)}"
        for spec, code in zip(specs, codes, strict=True)
        if code
    ]
    return " · ".join([f"{len(codes)} specs, {codes.count(ExitCode.YES)} yes", *told])
