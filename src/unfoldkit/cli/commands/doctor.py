"""``unfold doctor``: check that what unfold needs is installed and works."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from unfoldkit.cli import console
from unfoldkit.engines.local import available_cores
from unfoldkit.errors import ExitCode, UnfoldError, did_you_mean, format_value, list_extras, user_error
from unfoldkit.plugin_descriptors import REPORT_TO_AUTHORS, Check, CheckResult, resolve
from unfoldkit.registry import Registry, find_misspelt_hooks, open_registry

GIB = 1024**3
MIN_PYTHON = (3, 11)


def diagnose(form: str = "text", target: str | None = None) -> ExitCode:
    """Print every check with the remedy of a failed one; the answer is no if one failed.

    Args:
        form: ``text`` or ``json``.
        target: The system to check instead of this machine.
    """
    registry = open_registry()
    results = list(run_checks(registry) if target is None else check_target(registry, target))
    if form == "json":
        rows = [{"name": name, "ok": item.ok, "message": item.message, "hint": item.hint} for name, item in results]
        console.write_report(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    elif form == "text":
        console.write_report("".join(_format(name, item) for name, item in results))
    else:
        raise user_error(f"--format {form}: doctor prints text or json")
    return ExitCode.YES if all(item.ok for _, item in results) else ExitCode.NO


def run_checks(registry: Registry) -> Iterator[tuple[str, CheckResult]]:
    """Yield the name and result of every check."""
    version = f"Python {sys.version.split()[0]}"
    yield "python", CheckResult(sys.version_info >= MIN_PYTHON, version, "3.11 or later is needed")
    yield "packages", _check_packages()
    yield "disk", _check_disk()
    yield "cores", CheckResult(ok=True, message=f"{available_cores()} cores")
    yield "extras", _list_extras()
    for plugin in registry.plugins:
        message = f"{plugin.module} {plugin.status} {plugin.error}".strip()
        hint = "UNFOLD_DISABLE_PLUGINS disables it"
        yield f"plugin {plugin.name}", CheckResult(not plugin.error, message, hint)
    for name, owners in registry.duplicates.items():
        message = f"offered by {' and '.join(map(str, owners))}"
        yield f"kind {name}", CheckResult(ok=False, message=message, hint="UNFOLD_DISABLE_PLUGINS disables one")
    misspelt = find_misspelt_hooks(registry)
    yield "hooks", CheckResult(not misspelt, misspelt or "every hook is known", "a misspelt hook is never called")
    for check in registry.checks():
        if not check.target:
            yield from _run(check)


def check_target(registry: Registry, target: str) -> Iterator[tuple[str, CheckResult]]:
    """Yield the name and result of every check of a system.

    Raises:
        UnfoldError: No plugin checks that system.
    """
    checks = [check for check in registry.checks() if check.target]
    chosen = [check for check in checks if check.target == target]
    if not chosen:
        names = [check.target for check in checks]
        raise user_error(f"--target {target}: no such system", hint=did_you_mean(target, names))
    for check in chosen:
        yield from _run(check)


def _run(check: Check) -> Iterator[tuple[str, CheckResult]]:
    if not check.action:
        yield check.name, CheckResult(ok=False, message=check.summary, hint=REPORT_TO_AUTHORS)
        return
    try:
        result = resolve(check.action)()
    except UnfoldError as error:
        yield check.name, CheckResult(ok=False, message=str(error))
        return
    except Exception as error:  # noqa: BLE001 - the check of one plugin must not stop the others
        yield check.name, CheckResult(ok=False, message=f"the check itself failed: {error!r}", hint=REPORT_TO_AUTHORS)
        return
    results = result if check.target and isinstance(result, Mapping) else {check.name: result}
    for name, item in results.items():
        if isinstance(item, CheckResult):
            yield name, item
        else:
            message = f"the check returned {format_value(item)}, not a CheckResult"
            yield name, CheckResult(ok=False, message=message, hint=REPORT_TO_AUTHORS)


def _check_packages() -> CheckResult:
    missing = []
    for line in importlib.metadata.requires("unfoldkit") or ():
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        if "extra ==" not in line and not _is_installed(name):
            missing.append(name)
    message = f"missing: {', '.join(missing)}" if missing else "all installed"
    return CheckResult(not missing, message, "pip install unfoldkit")


def _check_disk() -> CheckResult:
    free = shutil.disk_usage(Path()).free / GIB
    try:
        with tempfile.NamedTemporaryFile(dir=Path()):
            is_writable = True
    except OSError:
        is_writable = False
    message = f"{free:.0f} GiB free, the working folder is {'writable' if is_writable else 'not writable'}"
    return CheckResult(free > 1 and is_writable, message, "runs are written to ./runs, or --run DIR")


def _list_extras() -> CheckResult:
    """List the extras with every package installed."""
    packages = {extra: names - {"unfoldkit"} for extra, names in list_extras().items()}
    packages = {extra: names for extra, names in packages.items() if names}
    installed = [name for name, parts in packages.items() if all(map(_is_installed, parts))]
    absent = [name for name in packages if name not in installed]
    message = f"installed: {', '.join(installed) or 'none'}; not installed: {', '.join(absent) or 'none'}"
    return CheckResult(ok=True, message=message)


def _is_installed(distribution: str) -> bool:
    return bool(list(importlib.metadata.distributions(name=distribution)))


def _format(name: str, item: CheckResult) -> str:
    hint = f"  ({item.hint})" if item.hint and not item.ok else ""
    return f"{'ok ' if item.ok else 'no '} {name:<18} {item.message}{hint}\n"
