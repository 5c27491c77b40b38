"""Copies of plug-ins in the folder of a run or a study, which stay as they were when it began. Torch-free."""

import importlib.metadata
from pathlib import Path

from comp.config import Config, plugins
from comp.results.files import make_folder, sha256_bytes, write_atomically


def copy_plugins(config: Config, folder: Path) -> list[dict[str, str]]:
    """Copy the sources of a config's plug-ins to `folder/plugins`; return their origins for provenance.json.

    Of an installed module only name, version and SHA-256 are recorded.
    """
    origins = []
    for plugin in map(plugins.parse, config.plugins):
        content = plugin.read()
        origin = {"name": plugin.name, "sha256": sha256_bytes(content), "file": str(plugin.path())}
        if plugin.is_file:
            make_folder(folder / plugins.FOLDER)
            write_atomically(folder / plugins.FOLDER / plugin.name, content)
        else:
            origin["version"] = _version_of(plugin.source)
        origins.append(origin)
    return origins


def with_copies(config: Config) -> Config:
    """Return a config that names the copies of its plug-ins, for a file beside their folder."""
    return config.model_copy(update={"plugins": plugins.as_copies(config.plugins)})


def _version_of(module: str) -> str:
    """Return the version of the package that installed a module; empty if none says so."""
    names = importlib.metadata.packages_distributions().get(module.partition(".")[0], [])
    return importlib.metadata.version(names[0]) if names else ""
