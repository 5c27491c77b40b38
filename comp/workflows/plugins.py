"""Plug-ins: Python files or installed modules whose rows join comp's registries (`plugins` in a config).

A plug-in declares dicts with the names of comp's own (`plugin_rows.REGISTRIES`): `METRICS = {"mine": Metric(...)}`. All
of them are checked, then added; none may replace a row. What timm's `register_model` registers when the plug-in is
imported is a model like timm's own.

A plug-in is code that runs as you. Naming it in a config of yours is consent. The copies in run folders run only with
`--allow-plugins`, or after you have consented to the same source in this command; its processes inherit that.
"""

import atexit
import contextlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from comp.augment.ops import WORKER_OPS
from comp.config import Config
from comp.config.plugins import COPIES, Plugin, parse
from comp.config.tasks import TASKS
from comp.models import timm_models
from comp.results import files
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, RunError
from comp.workflows.plugin_rows import (
    REGISTRIES,
    Rows,
    TaskLists,
    declared_rows,
    declared_tasks,
    error_line,
    list_in_tasks,
    reason_of,
)

ALLOWED = "COMP_ALLOWED_PLUGINS"
"""Environment variable: SHA-256 of the sources that the user has consented to, for all processes of a command."""


@dataclass(frozen=True)
class _Loaded:
    """A plug-in whose rows are in comp's registries.

    Attributes:
        plugin: with the SHA-256 of the code that ran.
        rows: its own.
        tasks: which tasks list them.
        models: names that it has registered with timm.
    """

    plugin: Plugin
    rows: Rows
    tasks: TaskLists
    models: tuple[str, ...]


_loaded: dict[str, _Loaded] = {}  # by the module's name


def load(config: Config, *, allow: bool = False) -> None:
    """Make the rows of a config's plug-ins, and of no others, available; what is loaded already stays.

    Args:
        config: of the user, who consents by naming them; but copies in a run's or a study's folder are no consent.
        allow: consent to those too.

    Raises:
        ConfigError: no consent, changed or wrong code, or rows that exist, are not of their type or do not fit.
    """
    plugins = [parse(entry) for entry in config.plugins]
    if unlocated := [plugin for plugin in plugins if not plugin.sha256]:
        raise ConfigError(f"plugins: {unlocated[0]}: load the config from its file, which locates the plug-in")
    copies = [plugin for plugin in plugins if plugin.is_file and _is_copy(Path(plugin.source))]
    if copies and not allow:
        _demand_consent(copies, "these copies", " where the command has it, or copy them beside a config of yours")
    _load(plugins)
    for name in _loaded.keys() - {plugin.module for plugin in plugins}:
        _remove(name)


def load_of(run: Run) -> None:
    """Make the rows of a run's plug-ins available, from its own copies; other plug-ins stay.

    Raises:
        ConfigError: see `load`.
        RunError: a copy is missing or has changed, or an installed module is another version.
    """
    check_consent(run)
    plugins = _plugins_of(run)
    for plugin in plugins:
        try:
            plugin.read()
        except ConfigError as error:
            raise RunError(f"{run.path}: {error}{_remedy(run, plugin)}") from None
    _load(plugins)


def check_consent(run: Run) -> None:
    """Check that the code of a run's plug-ins may run: by its `allow_plugins`, or because the same code already may.

    Raises:
        ConfigError: no consent; lists the files.
        RunError: its config does not say which code it means.
    """
    plugins = _plugins_of(run)
    if not run.allow_plugins:
        _demand_consent(plugins, str(run.path))


def allow(run: Run) -> None:
    """Consent to the plug-ins of a run, for this command and its processes."""
    _consent(_plugins_of(run))


@contextlib.contextmanager
def lent_by(run: Run, config: Config) -> Iterator[None]:
    """Context manager: the rows of another run's plug-ins are there, and then again those of a config alone.

    Raises:
        UserError: see `load_of`.
    """
    try:
        load_of(run)
        yield
    finally:
        load(config)


def _plugins_of(run: Run) -> list[Plugin]:
    plugins = [parse(entry) for entry in run.config().plugins]
    if unlocated := [plugin for plugin in plugins if not plugin.sha256]:
        raise RunError(
            f"{run.path / 'config.yaml'}: damaged: no sha256 of the plug-in {unlocated[0]}; restore the file"
        )
    return plugins


def _remedy(run: Run, plugin: Plugin) -> str:
    """Return how to get a missing copy back, as the end of a message; empty if the copy is there, but changed."""
    if not plugin.is_file or plugin.path().exists():
        return ""
    for origin, digest in _origins(run).items():
        if digest == plugin.sha256 and origin.is_file() and files.sha256_file(origin) == digest:
            return f"; it is a copy of {origin}: copy that there again"
    return f"; put the file of sha256 {plugin.sha256} back there, or train again without this run"


def describe(config: Config) -> tuple[str, ...]:
    """Return a note on each plug-in of a config that is loaded: its hash and its rows."""
    notes = []
    for entry in config.plugins:
        loaded = _loaded[parse(entry).module]
        names = [f"{REGISTRIES[kind].what} {name}" for kind, rows in loaded.rows.items() for name in rows]
        names += [f"model {name}" for name in loaded.models]
        added = ", ".join(name for name in names if name[0] != " ") or "nothing"
        notes.append(f"plug-in {loaded.plugin.name} (sha256 {loaded.plugin.sha256[:12]}) adds {added}")
    return tuple(notes)


def changed_since(run: Run) -> tuple[str, ...]:
    """Return a note on each file that a run's copies were made of and that has changed since."""
    digests = _origins(run)
    return tuple(
        f"{path} has changed since {run.path} began, which goes on with its own copy"
        for path, digest in digests.items()
        if path.is_file() and files.sha256_file(path) != digest
    )


def _origins(run: Run) -> dict[Path, Any]:
    """Return the files that a run's copies were made of, with their SHA-256."""
    recorded = run.provenance().get("plugins")
    rows = [row for row in recorded if isinstance(row, dict)] if isinstance(recorded, list) else []
    return {Path(str(row.get("file"))): row.get("sha256") for row in rows if "version" not in row}


def raised_in(error: BaseException) -> str:
    """Return `file, line n: reason` if the code of a loaded plug-in led to an error, else an empty text."""
    line = error_line(error, [str(loaded.plugin.path()) for loaded in _loaded.values()])
    return f"{line}: {reason_of(error)}" if line else ""


def _is_copy(path: Path) -> bool:
    """Return whether a file lies in the folder of a run or a study."""
    return any((folder / name).is_file() for folder in path.parents for name in ("provenance.json", "study.json"))


def _demand_consent(plugins: Sequence[Plugin], owner: str, hint: str = "") -> None:
    """Refuse plug-ins whose source the user has not consented to in this command."""
    consented = os.environ.get(ALLOWED, "").split()
    if refused := [plugin for plugin in plugins if plugin.sha256 not in consented]:
        listed = "".join(f"\n  {plugin.source}, sha256 {plugin.sha256}" for plugin in refused)
        raise ConfigError(
            f"{owner}: plug-ins of a run, Python code that would run as you; read it, then allow it with "
            f"--allow-plugins (in Python: allow_plugins=True){hint}:{listed}"
        )


def _consent(plugins: Sequence[Plugin]) -> None:
    if plugins:
        consented = [*os.environ.get(ALLOWED, "").split(), *(plugin.sha256 for plugin in plugins)]
        os.environ[ALLOWED] = " ".join(dict.fromkeys(consented))


def _load(plugins: Sequence[Plugin]) -> None:
    """Import what is not loaded in this version yet, in order, and add its rows; the user has consented."""
    _consent(plugins)
    names, is_new = {plugin.module for plugin in plugins}, False
    for plugin in plugins:
        old = _loaded.get(plugin.module)
        if old and old.plugin.sha256 == plugin.sha256 and not is_new:
            continue
        is_new = True  # the next ones may import it
        _remove(plugin.module)
        loaded = _import(plugin)
        for name in [name for name in _loaded if name not in names and _shared_row(_loaded[name], loaded)]:
            _remove(name)  # a plug-in of another config
        _check_new(loaded)
        for kind, rows in loaded.rows.items():
            REGISTRIES[kind].rows.update(rows)
        list_in_tasks(loaded.tasks)
        _loaded[plugin.module] = loaded
        timm_models.meta_model.cache_clear()


def _remove(name: str) -> None:
    """Take a plug-in's rows out of the registries."""
    if loaded := _loaded.pop(name, None):
        for kind, rows in loaded.rows.items():
            for row in rows:
                REGISTRIES[kind].rows.pop(row, None)
        list_in_tasks(loaded.tasks, remove=True)


def _import(plugin: Plugin) -> _Loaded:
    """Run a plug-in's code and return its rows, checked but not added."""
    where = plugin.source
    owned = {**{name: registry.rows for name, registry in REGISTRIES.items()}, "TASKS": TASKS}
    before, models = {name: dict(rows) for name, rows in owned.items()}, _timm_models()
    try:
        module = _execute(plugin)
    finally:
        written = [name for name, rows in before.items() if rows != owned[name]]
        for name in written:
            owned[name].clear()
            owned[name].update(before[name])
        replaced = _restore_models(models, plugin)
    if written:
        raise ConfigError(
            f"{where}: writes into comp's {written[0]}; declare its rows in its own: {written[0]} = {{...}}"
        )
    if replaced:
        raise ConfigError(f"{where}: replaces timm's {', '.join(replaced)}; register it under another name")
    rows = declared_rows(module, where)
    added = tuple(name for name, function in _timm_models().items() if function.__module__ == module.__name__)
    return _Loaded(plugin, rows, declared_tasks(module, rows, where), added)


def _timm_models() -> dict[str, Callable[..., Any]]:
    import timm

    return {name: timm.models.model_entrypoint(name) for name in timm.list_models()}


def _restore_models(models: Mapping[str, Callable[..., Any]], plugin: Plugin) -> list[str]:
    """Give timm the models back that a plug-in replaced, but for earlier ones of its own; return their names."""
    import timm

    now = _timm_models()
    replaced = [name for name in models if now[name] is not models[name] and models[name].__module__ != plugin.module]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Overwriting")
        for name in replaced:
            timm.models.register_model(models[name])
    return replaced


def _execute(plugin: Plugin) -> ModuleType:
    """Import a plug-in's code; a file as the module of its name."""
    name, content, path = plugin.module, plugin.read(), plugin.path()
    # timm warns where a name is registered again; standard output belongs to the command.
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.filterwarnings("ignore", message="Overwriting")
        try:
            if not plugin.is_file:
                return importlib.import_module(name)
            _check_hides_nothing(name, path)
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            module.__dict__["__comp_plugin__"] = plugin.sha256  # tells it from other modules of its name
            exec(compile(content, str(path), "exec"), module.__dict__)
        except ConfigError:
            raise
        except BaseException as error:
            sys.modules.pop(name, None)
            if isinstance(error, SyntaxError):
                line = f"{error.filename or path}, line {error.lineno or '?'}"
                raise ConfigError(f"{line}: cannot be imported: {error.msg}") from None
            if isinstance(error, Exception | SystemExit):
                where = error_line(error, [str(path)]) or str(path)
                raise ConfigError(f"{where}: cannot be imported: {reason_of(error)}") from None
            raise
    _keep_copy(name, content)
    return module


def _check_hides_nothing(name: str, path: Path) -> None:
    """Refuse a file that is named like another loaded or installed module."""
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.find_spec(name)
        installed = [Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib")]
        if not spec or not spec.origin or not {*installed} & {*Path(spec.origin).resolve().parents}:
            return
    elif hasattr(module, "__comp_plugin__"):
        return
    raise ConfigError(f"{path}: would hide the module {name}; rename it")


def _keep_copy(name: str, content: bytes) -> None:
    """Keep a copy of loaded code for the processes that this one starts.

    By its hash, for those that load the plug-in when its file has been edited; by its name, for those that are spawned,
    which get `sys.path`, but no modules.
    """
    folder = Path(os.environ.get(COPIES) or tempfile.mkdtemp(prefix="comp-plugins-"))
    if COPIES not in os.environ:
        os.environ[COPIES] = str(folder)
        atexit.register(_forget_copies, folder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, where it hides nothing
    for stem in (name, files.sha256_bytes(content)):
        files.write_atomically(folder / f"{stem}.py", content)


def _forget_copies(folder: Path) -> None:
    with contextlib.suppress(OSError, RunError):
        files.remove(folder, inside=folder.parent)


def _shared_row(first: _Loaded, second: _Loaded) -> str:
    """Return a row that both plug-ins have, such as METRICS['mine']; empty if there is none."""
    shared = ((kind, name) for kind, rows in first.rows.items() for name in rows if name in second.rows.get(kind, ()))
    return next((f"{kind}['{name}']" for kind, name in shared), "")


def _check_new(loaded: _Loaded) -> None:
    """Refuse rows that comp, timm or another plug-in of the config has."""
    import timm

    where = loaded.plugin.source
    for earlier in _loaded.values():
        if row := _shared_row(earlier, loaded):
            raise ConfigError(f"{where}: {row} is also a row of {earlier.plugin.source}; rename one of them")
    for kind, rows in loaded.rows.items():
        for name in rows:
            is_timm = kind == "NETWORKS" and timm.is_model(name)
            if name in REGISTRIES[kind].rows or (kind == "OPS" and name in WORKER_OPS) or is_timm:
                owner = "timm" if is_timm else "comp"
                raise ConfigError(f"{where}: {kind}['{name}']: {owner} has a row of this name; rename yours")
    for task, fields in loaded.tasks.items():
        for field, names in fields.items():
            for name in names:
                if name in getattr(TASKS[task], field):
                    raise ConfigError(f"{where}: TASKS['{task}']: {field} has '{name}' already; rename yours")
