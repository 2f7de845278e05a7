"""Load plugins: a broken one is reported and skipped, and a kind that several offer is an error that names them."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pluggy

from unfoldkit import hookspec
from unfoldkit.errors import Diagnostic, UnfoldError, did_you_mean, format_value
from unfoldkit.plugin_descriptors import API_VERSION, ENTRY_POINT_GROUP, Check, Kind, Renderer, RunFinished

DISTRIBUTION = "unfoldkit"


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point of the group ``unfoldkit``, its origin, and whether it was loaded."""

    name: str
    distribution: str
    version: str
    module: str
    error: str = ""
    disabled: bool = False
    kinds: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({f'{self.distribution} {self.version}'.strip()})"

    @property
    def status(self) -> str:
        """``ok``, ``disabled`` or ``broken``."""
        return "disabled" if self.disabled else "broken" if self.error else "ok"


@dataclass(frozen=True, slots=True)
class Registry:
    """The plugins of this process and their kinds; ``duplicates`` lists the plugins of a kind that several offer."""

    manager: pluggy.PluginManager
    plugins: tuple[Plugin, ...]
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    duplicates: Mapping[str, tuple[Plugin, ...]] = field(default_factory=dict)

    def kind(self, name: str) -> Kind:
        """Return the kind called ``name``.

        Raises:
            UnfoldError: No plugin, a broken plugin, or several plugins offer it.
        """
        if name in self.duplicates:
            raise UnfoldError(self._duplicate(name))
        if name in self.kinds:
            return self.kinds[name]
        suspects = [plugin for plugin in self.plugins if plugin.name == name and plugin.status != "ok"]
        if suspects:
            message = f"the plugin {format_value(name)} of {suspects[0].distribution} is {suspects[0].status}"
            raise UnfoldError(Diagnostic(message, hint=suspects[0].error or "UNFOLD_DISABLE_PLUGINS names it"))
        raise UnfoldError(Diagnostic(f"no such kind: {format_value(name)}", hint=did_you_mean(name, self.kinds)))

    def _duplicate(self, name: str) -> Diagnostic:
        owners = self.duplicates[name]
        candidate = owners[-1]
        # a plugin of the same name would be switched off with it
        is_unique = all(owner.name != candidate.name for owner in owners[:-1])
        switch = candidate.name if is_unique else candidate.distribution
        message = f"the kind {format_value(name)} is offered by {' and by '.join(map(str, owners))}"
        return Diagnostic(message, hint=f"disable one: UNFOLD_DISABLE_PLUGINS={switch}")

    def checks(self) -> list[Check]:
        """Return the health checks of all plugins."""
        return [check for check in self._collect("unfold_checks", _failed_check) if isinstance(check, Check)]

    def renderers(self) -> list[Renderer]:
        """Return the output formats of all plugins."""
        return [item for item in self._collect("unfold_renderers") if isinstance(item, Renderer)]

    def _collect(self, hook: str, on_error: Callable[[str, Exception], Any] | None = None) -> Iterator[Any]:
        """Yield what every plugin offers; for one that fails, the result of ``on_error``."""
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            try:
                yield from list(implementation.function())
            except Exception as error:  # noqa: BLE001 - one plugin must not stop the others
                if on_error is not None:
                    yield on_error(implementation.plugin_name, error)

    def notify(self, event: RunFinished, warn: Callable[[str], None]) -> None:
        """Notify every observer that a verb has finished; an exception of one is only a warning."""
        for implementation in self.manager.hook.unfold_run_finished.get_hookimpls():
            try:
                implementation.function(*[event] if "event" in implementation.argnames else [])
            except Exception as error:  # noqa: BLE001 - an observer must not change the result
                warn(f"the plugin {implementation.plugin_name} failed in unfold_run_finished: {error!r}")


def open_registry(*, builtin_only: bool = False, environment: Mapping[str, str] = os.environ) -> Registry:
    """Load the plugins, except those that ``UNFOLD_DISABLE_PLUGINS=a,b`` names."""
    disabled = [name.strip() for name in environment.get("UNFOLD_DISABLE_PLUGINS", "").split(",") if name.strip()]
    if not builtin_only:
        return load_registry(disabled=disabled)
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    builtin = [point for point in points if point.dist is not None and point.dist.name == DISTRIBUTION]
    return load_registry(disabled=disabled, entry_points=builtin)


def load_registry(
    *,
    disabled: Iterable[str] = (),
    entry_points: Sequence[importlib.metadata.EntryPoint] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Registry:
    """Load the plugins into a new registry.

    Args:
        disabled: Names of entry points, or of distributions, that are not loaded.
        entry_points: Entry points to load instead of the installed ones (for tests).
        extra: Further plugin objects by name (for tests).
    """
    manager = pluggy.PluginManager(hookspec.PROJECT)
    manager.add_hookspecs(hookspec)
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP) if entry_points is None else entry_points
    disabled_names = frozenset(disabled)
    loaded = [
        _load(manager, point, disabled_names) for point in sorted(points, key=lambda point: (point.name, point.value))
    ]
    for name, plugin in (extra or {}).items():
        loaded.append(_register(manager, Plugin(name, "given", "", getattr(plugin, "__name__", name)), plugin))
    return _build_registry(manager, loaded)


def _failed_check(plugin: str, error: Exception) -> Check:
    return Check(plugin, f"unfold_checks failed: {type(error).__name__}: {error}", "")


def find_misspelt_hooks(registry: Registry) -> str:
    """Describe hooks with unknown names, which would never be called; empty if there are none."""
    try:
        registry.manager.check_pending()
    except pluggy.PluginValidationError as error:
        return str(error)
    misspelt = [
        f"{plugin.name}: {name} is not a hook ({did_you_mean(name, hook_names())})"
        for plugin in registry.plugins
        for name in plugin.hooks
        if name not in hook_names()
    ]
    return "; ".join(misspelt)


def hook_names() -> tuple[str, ...]:
    """Return the names of the hooks, in the order of ``hookspec``."""
    return tuple(name for name in vars(hookspec) if name.startswith("unfold_"))


def _load(manager: pluggy.PluginManager, point: importlib.metadata.EntryPoint, disabled: frozenset[str]) -> Plugin:
    distribution = point.dist
    name = distribution.name if distribution else "unknown"
    plugin = Plugin(point.name, name, distribution.version if distribution else "", point.value)
    if not disabled.isdisjoint((point.name, name)):
        return replace(plugin, disabled=True)
    try:
        module = point.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a plugin raises at import, the host continues
        return replace(plugin, error=f"{type(error).__name__}: {error}")
    return _register(manager, plugin, module)


def _register(manager: pluggy.PluginManager, plugin: Plugin, module: Any) -> Plugin:
    unique = plugin.name if not manager.has_plugin(plugin.name) else f"{plugin.name} ({plugin.distribution})"
    hooks = tuple(name for name in dir(module) if name.startswith("unfold_"))
    try:
        manager.register(module, unique)
    except (pluggy.PluginValidationError, ValueError) as error:
        return replace(plugin, error=f"{type(error).__name__}: {error}", hooks=hooks)
    return replace(plugin, hooks=hooks)


def _build_registry(manager: pluggy.PluginManager, loaded: Sequence[Plugin]) -> Registry:
    owners: dict[str, list[Plugin]] = {}
    kinds: dict[str, Kind] = {}
    plugins: list[Plugin] = []
    for plugin in loaded:
        offered, error = _list_kinds(manager, plugin) if plugin.status == "ok" else ([], plugin.error)
        for kind in offered:
            kinds[kind.name] = kind
            owners.setdefault(kind.name, []).append(plugin)
        plugins.append(replace(plugin, error=error, kinds=tuple(kind.name for kind in offered)))
    duplicates = {name: tuple(names) for name, names in owners.items() if len(names) > 1}
    return Registry(
        manager, tuple(plugins), {n: k for n, k in sorted(kinds.items()) if n not in duplicates}, duplicates
    )


def _list_kinds(manager: pluggy.PluginManager, plugin: Plugin) -> tuple[list[Kind], str]:
    names = (f"{plugin.name} ({plugin.distribution})", plugin.name)
    module = next(manager.get_plugin(name) for name in names if manager.has_plugin(name))
    hook = getattr(module, "unfold_kinds", None)
    if hook is None:
        return [], ""
    try:
        kinds = list(hook())
    except Exception as error:  # noqa: BLE001 - as above
        return [], f"unfold_kinds failed: {type(error).__name__}: {error}"
    invalid = [kind for kind in kinds if not isinstance(kind, Kind) or kind.api != API_VERSION]
    if invalid:
        return [], f"offers {invalid[0]!r}, which is not a Kind of api {API_VERSION}"
    return kinds, ""
