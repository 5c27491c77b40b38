"""Weights as files: safetensors out, safetensors or plain tensors in. Nothing that could carry code is ever run."""

import hashlib
import io
import json
import pickle
import socket
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from comp.results import runs
from comp.runtime.errors import ModelError

State = dict[str, Tensor]

# Where training frameworks put the tensors inside a .pth file; averaged weights first.
_NESTED_UNDER = ("state_dict_ema", "model_ema", "state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


def to_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a state dict as the content of a safetensors file.

    Args:
        state: tensors on any device and in any layout; tensors that share memory are stored one by one.
        metadata: text facts kept in the file's header.
    """
    plain = {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, tensor in state.items()
    }
    return safetensors.torch.save(plain, dict(metadata))


def read(path: Path, *, sha256: str = "") -> tuple[State, dict[str, str]]:
    """Return a weights file's tensors (on the CPU) and text metadata, to which `sha256` is added.

    Args:
        path: a `.safetensors` file, or what `torch.save` wrote of tensors alone.
        sha256: the hash the file must have, 64 hex digits or their beginning (at least 8); empty: any.

    Raises:
        ModelError: missing, truncated, another hash, holding anything but finite tensors, or a pickle with code.
    """
    content = runs.read_bytes(path, "weights file", ModelError)
    digest = hashlib.sha256(content).hexdigest()
    _demand_hash(path, digest, sha256)
    if path.suffix == ".safetensors":
        state, metadata = _from_safetensors(content, path)
    else:
        state, metadata = _from_pickle(content, path), {}
    _demand_finite(state, path)
    return state, {**metadata, "sha256": digest}


def load_weights(model: nn.Module, path: Path, *, sha256: str = "") -> dict[str, str]:
    """Put a file's weights into a model that has exactly these tensors; return the file's metadata.

    Raises:
        ModelError: as `read`, or names and shapes differ.
    """
    state, metadata = read(path, sha256=sha256)
    load_state(model, state, where=str(path))
    return metadata


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Put tensors into a model, all or none.

    Raises:
        ModelError: listing missing, unexpected and differently shaped tensors.
    """
    problem = mismatch(model, state)
    if problem:
        raise ModelError(f"{where}: these weights belong to another network: {problem}")
    model.load_state_dict(state)


def mismatch(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Return how a state dict departs from a model's own, in words; empty where it fits."""
    own = model.state_dict()
    shapes = [
        f"{name} (expected {list(own[name].shape)}, found {list(tensor.shape)})"
        for name, tensor in state.items()
        if name in own and own[name].shape != tensor.shape
    ]
    departures = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "other shape": shapes,
    }
    return "; ".join(f"{kind}: {_shortened(names)}" for kind, names in departures.items() if names)


def _shortened(names: list[str], most: int = 6) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _demand_hash(path: Path, digest: str, wanted: str) -> None:
    if wanted and (len(wanted) < 8 or not digest.startswith(wanted.lower())):
        raise ModelError(
            f"{path}: model.sha256: expected {wanted}, found {digest}; fetch the file again, "
            "or correct model.sha256 if this is the file you mean"
        )


def _demand_finite(state: Mapping[str, Tensor], path: Path) -> None:
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise ModelError(f"{path}: expected finite weights, found NaN or infinity in {_shortened(bad)}")


def _from_safetensors(content: bytes, path: Path) -> tuple[State, dict[str, str]]:
    try:
        state = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path}: expected a whole safetensors file, found {len(content)} bytes that are not ({error}); "
            "the file is truncated or of another kind: fetch or write it again"
        ) from None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return state, dict(header.get("__metadata__") or {})


def _from_pickle(content: bytes, path: Path) -> State:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: the file is judged by what comes out
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: expected tensors alone, found a pickle that torch will not load with weights_only "
            f"({_first_line(error)}); it could run code: convert it to .safetensors where you trust it"
        ) from None
    # Bytes that nobody wrote as a pickle can break the reader anywhere, with any error.
    except Exception as error:
        raise ModelError(
            f"{path}: expected a file written by torch.save, found {len(content)} bytes that are not "
            f"({_first_line(error)}); the file is truncated or of another kind: fetch it again"
        ) from None
    return _tensors(found, path)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _tensors(found: Any, path: Path) -> State:
    """Return the state dict of a loaded .pth file, whatever it is nested in."""
    for key in _NESTED_UNDER:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not found:
        raise ModelError(f"{path}: expected a state dict of named tensors, found {type(found).__name__}")
    strange = [name for name, value in found.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strange:
        raise ModelError(
            f"{path}: expected only named tensors, found {_shortened([str(name) for name in strange])}; "
            "save the model's state_dict() alone"
        )
    return {_unwrapped(name): tensor for name, tensor in found.items()}


def _unwrapped(name: str) -> str:
    for prefix in _WRAPPERS:
        name = name.removeprefix(prefix)
    return name


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


def find_published(name: str, cfg: Mapping[str, Any], folder: Path | None) -> Path:
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
