"""Where a timm model's published weights are found: a local folder first, then the hub."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from comp.runtime.errors import ModelError

# Seconds for the hub to answer at all; a machine without a network should hear so at once.
_HUB_PATIENCE_SECONDS = 5.0


def local_file(name: str, folder: Path | None) -> Path | None:
    """Return a model's weights file in a folder, with the tag of its weights or without, or None."""
    if folder is None:
        return None
    candidates = (folder / f"{stem}.safetensors" for stem in (name, name.partition(".")[0]))
    return next((path for path in candidates if path.is_file()), None)


def cached_file(cfg: Mapping[str, Any]) -> Path | None:
    """Return a model's weights file in the hub's local cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    if not cfg.get("hf_hub_id"):
        return None
    found = try_to_load_from_cache(cfg["hf_hub_id"], _hub_file(cfg))
    return Path(found) if isinstance(found, str) else None


def find(name: str, cfg: Mapping[str, Any], folder: Path | None) -> Path:
    """Return the file of a timm model's published weights, downloaded if need be.

    Args:
        name: the model's.
        cfg: timm's facts about these weights.
        folder: looked in first for `<name>.safetensors`.

    Raises:
        ModelError: none are published, or there is neither a file nor a network; says which file goes where.
    """
    at_hand = local_file(name, folder) or cached_file(cfg)
    return at_hand or _from_hub(name, cfg, folder)


def _hub_file(cfg: Mapping[str, Any]) -> str:
    return str(cfg.get("hf_hub_filename") or "model.safetensors")


def _from_hub(name: str, cfg: Mapping[str, Any], folder: Path | None) -> Path:
    if not cfg.get("hf_hub_id"):
        raise ModelError(f"model.pretrained: no weights are published for {name}; set it to false or to a file's path")
    from huggingface_hub import hf_hub_download

    try:
        _demand_network()
        return Path(hf_hub_download(cfg["hf_hub_id"], _hub_file(cfg), etag_timeout=_HUB_PATIENCE_SECONDS))
    # The hub's client raises errors of three libraries for one fact: the file did not come.
    except Exception as error:
        place = (folder or Path("data/weights")) / f"{name}.safetensors"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"model.pretrained: the weights of {name} are not here and cannot be fetched ({reason}); "
            f"wanted: {_hub_file(cfg)} of {cfg['hf_hub_id']} on the Hugging Face hub, put at {place}"
        ) from None


def _demand_network() -> None:
    """Ask for the hub's door once, since its client retries for minutes before it says that there is none."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if address.scheme in getproxies():  # the proxy's door is not ours to judge
        return
    port = address.port or (443 if address.scheme == "https" else 80)
    socket.create_connection((str(address.hostname), port), timeout=_HUB_PATIENCE_SECONDS).close()
