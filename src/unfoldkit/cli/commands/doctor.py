"""`unfold doctor`: is everything there that the tool needs?"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from unfoldkit.cli import console, plugin_registry
from unfoldkit.descriptors import TELL, Check, CheckResult, resolve
from unfoldkit.engines.local import available_cores
from unfoldkit.errors import ExitCode, UnfoldError, format_value, user_error
from unfoldkit.registry import Registry, pending

EXTRAS = {"ray": "ray", "kubernetes": "kubernetes", "torch": "torch", "parquet": "pyarrow"}
GIB = 1024**3


def doctor(form: str = "text") -> ExitCode:
    """Print every check and what to do about a failed one; exit 1 if one failed."""
    found = list(results(plugin_registry.registry()))
    if form == "json":
        rows = [{"name": name, "ok": item.ok, "message": item.message, "hint": item.hint} for name, item in found]
        console.write_report(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    elif form == "text":
        console.write_report("".join(_line(name, item) for name, item in found))
    else:
        raise user_error(f"--format {form}: doctor prints text or json")
    return ExitCode.YES if all(item.ok for _, item in found) else ExitCode.NO


def results(registry: Registry) -> Iterator[tuple[str, CheckResult]]:
    """Yield every check's name and result."""
    yield (
        "python",
        CheckResult(sys.version_info >= (3, 11), f"Python {sys.version.split()[0]}", "3.11 or later is needed"),
    )
    yield "packages", _packages()
    yield "disk", _disk()
    yield "cores", CheckResult(ok=True, message=f"{available_cores()} cores")
    yield "extras", _extras()
    for plugin in registry.plugins:
        message = f"{plugin.module} {plugin.status} {plugin.error}".strip()
        yield (
            f"plugin {plugin.name}",
            CheckResult(not plugin.error, message, "UNFOLD_DISABLE_PLUGINS switches it off"),
        )
    for name, owners in registry.duplicates.items():
        yield (
            f"kind {name}",
            CheckResult(ok=False, message=f"offered by {' and '.join(map(str, owners))}", hint="switch one off"),
        )
    misspelt = pending(registry)
    yield (
        "hooks",
        CheckResult(not misspelt, misspelt or "every hook is known", "a misspelt hook is never called"),
    )
    for check in registry.checks():
        yield check.name, _run(check)


def _run(check: Check) -> CheckResult:
    if not check.action:
        return CheckResult(ok=False, message=check.summary, hint=TELL)
    try:
        result = resolve(check.action)()
    except UnfoldError as error:
        return CheckResult(ok=False, message=str(error))
    except Exception as error:  # noqa: BLE001 - a plugin's check must not end the others
        return CheckResult(ok=False, message=f"the check itself failed: {error!r}", hint=TELL)
    if isinstance(result, CheckResult):
        return result
    return CheckResult(ok=False, message=f"the check returned {format_value(result)}, no CheckResult", hint=TELL)


def _packages() -> CheckResult:
    missing = []
    for line in importlib.metadata.requires("unfoldkit") or ():
        name = line.split(";")[0].split(">")[0].split("[")[0].strip()
        if "extra ==" not in line and not list(importlib.metadata.distributions(name=name)):
            missing.append(name)
    return CheckResult(
        not missing, f"missing: {', '.join(missing)}" if missing else "all there", "pip install unfoldkit"
    )


def _disk() -> CheckResult:
    free = shutil.disk_usage(Path()).free / GIB
    try:
        with tempfile.NamedTemporaryFile(dir=Path()):
            writable = True
    except OSError:
        writable = False
    message = f"{free:.0f} GiB free, the working folder is {'writable' if writable else 'not writable'}"
    return CheckResult(free > 1 and writable, message, "runs are written to ./runs, or --run DIR")


def _extras() -> CheckResult:
    there = [name for name, module in EXTRAS.items() if importlib.util.find_spec(module)]
    absent = [name for name in EXTRAS if name not in there]
    message = f"installed: {', '.join(there) or 'none'}; not installed: {', '.join(absent) or 'none'}"
    return CheckResult(ok=True, message=message)


def _line(name: str, item: CheckResult) -> str:
    hint = f"  ({item.hint})" if item.hint and not item.ok else ""
    return f"{'ok ' if item.ok else 'no '} {name:<18} {item.message}{hint}\n"
