"""``python -m tests.wheels held|used|alone``: what wheels hold, and how they do outside the checkout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
USE = "usage: python -m tests.wheels held WHEEL | slim | used | alone FOLDER"
MAX_INSTALLED_MIB = 200
VERBS = ("profile", "train", "plan", "serve")
EXTRA_OF_SPEC = {
    "cascade/digits.yaml": "cascade",
    "pipeline/digits.yaml": "pipeline",
    "placement/gangs.yaml": "placement",
    "supernet/digits.yaml": "supernet",
    "tuning/small.yaml": "tuning",
}


def main(words: list[str]) -> None:
    """Do what a session of nox asks for, and end with words where something is not as it should be."""
    match words:
        case ["held", wheel]:
            check_contents(Path(wheel))
            check_entry_points()
        case ["used"]:
            with tempfile.TemporaryDirectory() as away:
                use(Path(away))
        case ["slim"]:
            with tempfile.TemporaryDirectory() as away:
                use_without_extras(Path(away))
        case ["alone", folder]:
            for plugin in plugin_folders():
                build_alone(plugin, Path(folder) / plugin.name)
        case _:
            sys.exit(USE)


def check_contents(built: Path) -> None:
    """Stop unless the wheel holds every package of the checkout and every config, and nothing else."""
    there, wanted = names(built), set(expected())
    if there != wanted:
        sys.exit(f"not in the wheel: {sorted(wanted - there)}; not in the checkout: {sorted(there - wanted)}")
    print(f"{built.name} holds {len(there)} files, {built.stat().st_size / 1024:.0f} KiB")


def expected() -> Iterator[str]:
    """Yield what belongs in the wheel: packages, configs, and the template of plugins."""
    template = ROOT / "plugins" / "echo"
    yield from (item.relative_to(ROOT / "src").as_posix() for item in files(ROOT / "src"))
    for folder in plugin_folders():
        yield from (item.relative_to(folder).as_posix() for item in files(folder / package_of(folder)))
    for place, source in (("_configs", ROOT / "configs"), ("_template", template)):
        yield from (f"unfoldkit/{place}/{item.relative_to(source).as_posix()}" for item in files(source))


def check_entry_points() -> None:
    """Stop unless the main table of entry points is the sum of those of the plugins."""
    main = entry_points(ROOT)
    parts = {name: value for folder in plugin_folders() for name, value in entry_points(folder).items()}
    if main != parts:
        sys.exit(f"entry points: pyproject.toml has {main}, plugins/*/pyproject.toml have {parts}")


def use(away: Path) -> None:
    """Run the installed command outside the checkout: list, check every shipped spec, start a plugin."""
    configs = shutil.copytree(ROOT / "configs", away / "configs")
    listed = json.loads(run(away, "unfold", "plugins", "--format", "json", stdout=subprocess.PIPE))
    broken = {plugin["name"]: plugin["error"] for plugin in listed if plugin["status"] != "ok"}
    if broken or {plugin["name"] for plugin in listed} != set(entry_points(ROOT)):
        sys.exit(f"the installed plugins are {[plugin['name'] for plugin in listed]}, broken: {broken}")
    run(away, "unfold", "check", *sorted(str(path) for path in configs.rglob("*.yaml")))
    run(away, "unfold", "plugins", "new", "x")
    run(away, sys.executable, "-m", "docs.console", "--installs", env={**os.environ, "PYTHONPATH": str(ROOT)})


def use_without_extras(away: Path) -> None:
    """Run the command as installed without extras: small, checks everything, and names the extra of what it lacks."""
    # another command of this module runs without the project
    from unfoldkit.errors import install_command
    from unfoldkit.registry import open_registry

    size_mib = sum(map(installed_bytes, importlib.metadata.distributions())) / 2**20
    if size_mib > MAX_INSTALLED_MIB:
        sys.exit(f"{size_mib:.0f} MiB are installed, more than {MAX_INSTALLED_MIB}")
    configs = shutil.copytree(ROOT / "configs", away / "configs")
    run(away, "unfold", "check", *sorted(str(path) for path in configs.rglob("*.yaml")))
    run(away, "unfold", "schema", stdout=subprocess.DEVNULL)
    run(away, "unfold", "plan", "configs/echo/hello.yaml", stdout=subprocess.DEVNULL)
    kinds = open_registry(builtin_only=True).kinds
    for file, extra in EXTRA_OF_SPEC.items():
        kind = kinds[file.partition("/")[0]]
        # a cascade is trained before it is served, and this one is not
        verbs = [verb for verb in VERBS if getattr(kind, verb) and (kind.name, verb) != ("cascade", "serve")]
        for verb in verbs:
            words = ["unfold", verb, f"configs/{file}"]
            done = subprocess.run(words, cwd=away, capture_output=True, text=True, check=False)
            command = install_command(extra)
            if done.returncode != 2 or command not in done.stderr or len(done.stderr.splitlines()) != 1:
                sys.exit(f"{' '.join(words)} ended with {done.returncode} and not with {command}:\n{done.stderr}")
    print(f"{size_mib:.0f} MiB are installed without extras")


def installed_bytes(distribution: importlib.metadata.Distribution) -> int:
    """Return the bytes of the files of a distribution."""
    paths = (Path(str(distribution.locate_file(file))) for file in distribution.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file())


def build_alone(plugin: Path, out: Path) -> None:
    """Build a plugin's folder as a third party would, and stop unless it ships its package and nothing else."""
    shutil.rmtree(out, ignore_errors=True)
    run(ROOT, sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(out), str(plugin))
    tops = {name.partition("/")[0] for name in names(next(out.glob("*.whl")))}
    if tops != {package_of(plugin)}:
        sys.exit(f"{plugin} alone ships {sorted(tops)}, not {package_of(plugin)}")


def run(folder: Path, *words: str, **given: Any) -> str:
    """Run a command in a folder and return what it printed, where that is asked for."""
    return str(subprocess.run(words, cwd=folder, check=True, text=True, **given).stdout)


def entry_points(folder: Path) -> dict[str, str]:
    """Return a project's table of plugins."""
    table = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    return dict(table["project"]["entry-points"]["unfoldkit"])


def plugin_folders() -> list[Path]:
    """Return the folders of the plugins."""
    return [path.parent for path in sorted((ROOT / "plugins").glob("*/pyproject.toml"))]


def package_of(folder: Path) -> str:
    """Return the import name of a plugin."""
    return f"unfold_{folder.name}"


def files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that belong to the checkout."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
            yield path


def names(built: Path) -> set[str]:
    """Return the names of the files of a wheel, its own papers aside."""
    with ZipFile(built) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


if __name__ == "__main__":
    main(sys.argv[1:])
