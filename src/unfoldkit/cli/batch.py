"""``unfold plan`` of several specs: each in turn, whatever the result of the others; the exit code is the worst."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree as ET

from unfoldkit.cli import console, output
from unfoldkit.cli.execution import execute, load_request, notify_observers, perform, run_folder
from unfoldkit.cli.request import Request
from unfoldkit.errors import ExitCode, UnfoldError, escape_unprintable, user_error
from unfoldkit.plugin_descriptors import Renderer, resolve
from unfoldkit.registry import Registry, open_registry
from unfoldkit.report import Report
from unfoldkit.run_directory import encode_text
from unfoldkit.spec.resolve import LoadedSpec, spec_hash

STOPS = (ExitCode.HUNG_UP, ExitCode.INTERRUPTED, ExitCode.CLOSED_PIPE, ExitCode.TERMINATED)
VERDICTS = {ExitCode.YES: "yes", ExitCode.NO: "no"}


@dataclass(frozen=True, slots=True)
class Batch:
    """The common parts of a call with several specs.

    Args:
        request: The call.
        registry: The plugins.
        renderer: The format of the reports.
        stdin: The text of a spec that comes from stdin.
        pages: Rendered reports that are written as one document at the end.
        runs: By folder of a run, the spec that last used it and its hash.
    """

    request: Request
    registry: Registry
    renderer: Renderer
    stdin: str = ""
    pages: list[str] = field(default_factory=list)
    runs: dict[Path, tuple[str, str]] = field(default_factory=dict)

    @property
    def is_document(self) -> bool:
        """Whether the pages form one document, which can be written only when all are there."""
        return self.request.out is not None or self.renderer.name in DOCUMENTS

    def plan(self, spec: str) -> ExitCode:
        """Plan one spec, and write or collect its report, or its mistakes if the format can hold them.

        Raises:
            UnfoldError: The spec is at fault, and the format cannot hold mistakes.
        """
        request = replace(self.request, spec=spec)
        try:
            loaded = load_request(request, self.registry, self.stdin)
            self._claim_run(request, loaded)
            report, code = execute(request, self.registry, loaded)
        except UnfoldError as error:
            page = output.render_mistakes(self.renderer.name, error.diagnostics)
            if page is None:
                raise
            self._write(page)
            return error.code
        self._deliver(report)
        notify_observers(self.registry, report, code)
        return code

    def finish(self) -> None:
        """Write the document, if there is one."""
        if not self.is_document:
            return
        content = join_pages(self.renderer.name, self.pages)
        if self.request.out is None:
            console.write_report(content)
        else:
            output.write_out(self.request.out, encode_text(content))
            console.print_written(self.request.out)

    def _claim_run(self, request: Request, loaded: LoadedSpec) -> None:
        """Report that a spec overwrites the run of an earlier spec of the same name."""
        folder, made_from = run_folder(request, loaded), spec_hash(loaded.spec)
        earlier, stored = self.runs.get(folder, (request.spec, made_from))
        if stored != made_from and not request.dry_run:
            message = f"{request.spec}: overwrites the run of {earlier} in {folder} (another name keeps both)"
            console.print_message(escape_unprintable(message))
        self.runs[folder] = request.spec, made_from

    def _deliver(self, report: Report) -> None:
        if self.is_document:
            self.pages.append(resolve(self.renderer.render)(report))
            return
        if self.pages:
            console.write_report(SEPARATORS[self.renderer.name])
        self.pages.append("")
        output.deliver(report, self.renderer, None)

    def _write(self, page: str) -> None:
        self.pages.append(page)
        if not self.is_document:
            console.write_report(page)


def perform_all(request: Request, specs: Sequence[str], stdin: str = "") -> int:
    """Plan each spec and return the worst exit code; a signal and a closed pipe stop at once.

    Raises:
        UnfoldError: An option or the format is for one spec only.
    """
    if len(specs) == 1:
        return perform(replace(request, spec=specs[0]), stdin)
    _reject_single_spec_options(request)
    output.refuse_overwrite(request.out, *specs, request.replay)
    registry = open_registry(builtin_only=request.builtin_only)
    renderer = output.select_renderer(registry, request.format, request.out)
    if renderer.name not in SEPARATORS:
        hint = f"for several: {', '.join(SEPARATORS)}"
        raise user_error(f"--format {renderer.name} takes one spec", hint=hint)
    batch = Batch(request, registry, renderer, stdin)
    codes: list[int] = []
    for spec in specs:
        codes.append(console.run_guarded(_bind(batch, spec)))
        if codes[-1] in STOPS:
            return codes[-1]
    batch.finish()
    console.print_message(_summarize(specs, codes))
    return max(codes)


def _bind(batch: Batch, spec: str) -> Callable[[], int]:
    return lambda: batch.plan(spec)


def _reject_single_spec_options(request: Request) -> None:
    for flag, value in (("--run", request.run), ("--check", request.check)):
        if value is not None:
            raise user_error(f"{flag} {value} is for one spec", hint="plan one at a time")


def _summarize(specs: Sequence[str], codes: Sequence[int]) -> str:
    others = [
        f"{VERDICTS.get(ExitCode(code), 'failed')}: {escape_unprintable(spec)}"
        for spec, code in zip(specs, codes, strict=True)
        if code
    ]
    return " · ".join([f"{len(codes)} specs, {codes.count(ExitCode.YES)} yes", *others])


SEPARATORS = {"text": "\n", "md": "\n", "github": "", "json": ",\n", "junit": ""}
DOCUMENTS = ("json", "junit")


def join_pages(name: str, pages: Sequence[str]) -> str:
    """Join pages: a list in JSON, one file with a suite per report in JUnit, else one page after another."""
    if name == "json":
        return "[" + SEPARATORS[name].join(page.rstrip("\n") for page in pages) + "]\n"
    return _join_suites(pages) if name == "junit" else SEPARATORS[name].join(pages)


def _join_suites(pages: Sequence[str]) -> str:
    root = ET.Element("testsuites")
    for page in pages:
        # our own renderer has just written it
        root.extend(ET.fromstring(encode_text(page)))  # noqa: S314
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
