"""``unfold plugins new``: start a plugin from the template, which is the plugin ``echo``."""

from __future__ import annotations

import importlib.metadata
import keyword
import re
import shutil
from pathlib import Path

from unfoldkit.cli import console
from unfoldkit.errors import ExitCode, internal_error, user_error
from unfoldkit.plugin_descriptors import ENTRY_POINT_GROUP

TEMPLATE = "echo"


def create_plugin(name: str, folder: Path) -> ExitCode:
    """Create ``unfold-NAME`` in ``folder``.

    Raises:
        UnfoldError: The name is invalid or taken, or the folder exists or cannot be created.
    """
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,40}", name) or keyword.iskeyword(module):
        raise user_error(
            f"{name!r} cannot be the name of a plugin",
            hint="lower-case letters, digits and dashes, such as my-kind",
        )
    installed = {point.name for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}
    if name in installed:
        raise user_error(f"a plugin {name} is installed already", hint="another name; unfold plugins lists them")
    target = folder / f"unfold-{name}"
    if target.exists():
        raise user_error("the folder exists; nothing was changed", file=str(target))
    try:
        _copy_template(template_folder(), target, name, module)
    except OSError as error:
        raise user_error(f"cannot write: {error.strerror}", file=str(target)) from error
    commands = f"pip install -e {target} && unfold init {name} -o {name}.yaml && unfold plan {name}.yaml"
    console.print_message(f"created {target}\nnext: {commands}")
    return ExitCode.YES


def template_folder() -> Path:
    """Return the folder of the template: in the package, or in the checkout of an editable install.

    Raises:
        UnfoldError: The template is missing.
    """
    package = Path(__file__).parents[2]
    for folder in (package / "_template", package.parents[1] / "plugins" / TEMPLATE):
        if folder.is_dir():
            return folder
    raise internal_error("the template of plugins was not installed", hint="reinstall unfoldkit")


def rename_template(text: str, name: str, module: str) -> str:
    """Return the text of a template file with the new name in each spelling of the old one."""
    text = text.replace(f"unfold-{TEMPLATE}", f"unfold-{name}").replace(f"unfold_{TEMPLATE}", f"unfold_{module}")
    text = text.replace(f"class {TEMPLATE.capitalize()}", f"class {_to_camel_case(name)}").replace(
        f"{TEMPLATE.capitalize()}Spec", f"{_to_camel_case(name)}Spec"
    )
    return re.sub(rf"\b{TEMPLATE}\b", name, text)


def _copy_template(source: Path, target: Path, name: str, module: str) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    shutil.copytree(source, target, ignore=ignore)
    (target / f"unfold_{TEMPLATE}").rename(target / f"unfold_{module}")
    for path in [item for item in target.rglob("*") if item.is_file()]:
        path.write_text(rename_template(path.read_text(encoding="utf-8"), name, module), encoding="utf-8")


def _to_camel_case(name: str) -> str:
    return "".join(part.capitalize() for part in re.split(r"[-_]", name))
