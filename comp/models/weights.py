"""Weights files: find, download, read and write them. Reading never runs code (safetensors, or `weights_only`)."""

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

from comp.results import files
from comp.runtime.errors import ModelError

State = dict[str, Tensor]

# Keys under which training frameworks store the state dict in a .pth file; averaged weights first.
_NESTED_UNDER = ("state_dict_ema", "model_ema", "state_dict", "model")


def to_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Serialise tensors of any device and layout as safetensors, with header text; shared memory is stored twice."""
    plain = {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, tensor in state.items()
    }
    return safetensors.torch.save(plain, dict(metadata))


def read(path: Path, *, sha256: str = "") -> tuple[State, dict[str, str]]:
    """Read a weights file: tensors on the CPU, and text metadata with the file's `sha256` added.

    Args:
        path: a `.safetensors` file, or a `torch.save` file of tensors only.
        sha256: the expected hash, or at least its first 8 hex digits; empty: any.

    Raises:
        ModelError: missing, truncated, another hash, anything but finite tensors, or a pickle with code.
    """
    content = files.read_bytes(path, "weights file", ModelError)
    digest = hashlib.sha256(content).hexdigest()
    if sha256 and (len(sha256) < 8 or not digest.startswith(sha256.lower())):
        raise ModelError(
            f"{path}: model.sha256: expected {sha256}, found {digest}; download the file again, or correct model.sha256"
        )
    if path.suffix == ".safetensors":
        state, metadata = _from_safetensors(content, path)
    else:
        state, metadata = _from_pickle(content, path), {}
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise ModelError(f"{path}: expected finite weights, found NaN or infinity in {_shorten(bad)}")
    return state, {**metadata, "sha256": digest}


def load_weights(model: nn.Module, path: Path, *, sha256: str = "") -> dict[str, str]:
    """Load a weights file into a model with exactly these tensors; return the file's metadata.

    Raises:
        ModelError: as `read`, or names or shapes differ.
    """
    state, metadata = read(path, sha256=sha256)
    load_state(model, state, where=str(path))
    return metadata


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Load a state dict into a model, all tensors or none.

    Raises:
        ModelError: listing missing, unexpected and differently shaped tensors.
    """
    problem = mismatch(model, state)
    if problem:
        raise ModelError(f"{where}: these weights belong to another network: {problem}")
    model.load_state_dict(state)


def mismatch(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Describe how a state dict differs from a model's; empty if it fits."""
    expected = model.state_dict()
    shapes = [
        f"{name} (expected {list(expected[name].shape)}, found {list(tensor.shape)})"
        for name, tensor in state.items()
        if name in expected and expected[name].shape != tensor.shape
    ]
    differences = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "other shape": shapes,
    }
    return "; ".join(f"{kind}: {_shorten(names)}" for kind, names in differences.items() if names)


def _shorten(names: list[str], limit: int = 6) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _from_safetensors(content: bytes, path: Path) -> tuple[State, dict[str, str]]:
    try:
        state = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path}: expected a safetensors file, found {len(content)} bytes that do not parse ({error}); "
            "the file is truncated or of another format: download or write it again"
        ) from None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return state, dict(header.get("__metadata__") or {})


def _from_pickle(content: bytes, path: Path) -> State:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            content_object = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: expected only tensors, found a pickle that torch refuses to load with weights_only "
            f"({_first_line(error)}); it could run code: if you trust it, convert it to .safetensors"
        ) from None
    # Arbitrary bytes can make the unpickler raise any error.
    except Exception as error:
        raise ModelError(
            f"{path}: expected a torch.save file, found {len(content)} bytes that do not load "
            f"({_first_line(error)}); the file is truncated or of another format: download it again"
        ) from None
    return _extract_state(content_object, path)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _extract_state(checkpoint: Any, path: Path) -> State:
    """Return the state dict in a loaded .pth file, with wrappers' prefixes removed."""
    for key in _NESTED_UNDER:
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise ModelError(f"{path}: expected a state dict of named tensors, found {type(checkpoint).__name__}")
    unexpected = [
        name for name, value in checkpoint.items() if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if unexpected:
        raise ModelError(
            f"{path}: expected only named tensors, found {_shorten([str(name) for name in unexpected])}; "
            "save only the model's state_dict()"
        )
    # DistributedDataParallel and torch.compile add these.
    return {name.removeprefix("module.").removeprefix("_orig_mod."): tensor for name, tensor in checkpoint.items()}


# Short, so that a machine without a network fails quickly.
_HUB_TIMEOUT_SECONDS = 5.0
_SHARED = Path("data/weights")  # for data of any folder


def folders(folder: Path) -> list[Path]:
    """Return where weights files are looked for: a folder, such as `weights` in `data.root`, then `data/weights`."""
    return list(dict.fromkeys((folder, _SHARED)))


def local_file(name: str, folder: Path | None) -> Path | None:
    """Return `<name>.safetensors`, with or without the weights' tag, in the first of `folders` that has it, or None."""
    if folder is None:
        return None
    stems = dict.fromkeys((name, name.partition(".")[0]))
    candidates = (place / f"{stem}.safetensors" for place in folders(folder) for stem in stems)
    return next((path for path in candidates if path.is_file()), None)


def cached_file(cfg: Mapping[str, Any]) -> Path | None:
    """Return a model's weights file in the hub's local cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    if not cfg.get("hf_hub_id"):
        return None
    path = try_to_load_from_cache(cfg["hf_hub_id"], _hub_file(cfg))
    return Path(path) if isinstance(path, str) else None


def source_of(name: str, folder: Path | None) -> str:
    """Return where a timm model's weights are: `file` (in a folder), `cached`, `hub`, or empty: none published."""
    import timm

    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        return ""
    if local_file(name, folder):
        return "file"
    return "cached" if cached_file(cfg.to_dict()) else "hub"


def find_published(name: str, cfg: Mapping[str, Any], folder: Path | None) -> Path:
    """Find a timm model's published weights: in a folder, in the hub's cache, else download them.

    Args:
        name: of the model.
        cfg: timm's pretrained config.
        folder: searched first for `<name>.safetensors`.

    Raises:
        ModelError: none are published, or no file and no network; names the file and where to put it.
    """
    if path := local_file(name, folder) or cached_file(cfg):
        return path
    if not cfg.get("hf_hub_id"):
        raise ModelError(f"model.pretrained: no weights are published for {name}; set it to false or to a file path")
    from huggingface_hub import hf_hub_download

    try:
        _check_network()
        return Path(hf_hub_download(cfg["hf_hub_id"], _hub_file(cfg), etag_timeout=_HUB_TIMEOUT_SECONDS))
    # The hub's client raises errors of three libraries when a download fails.
    except Exception as error:
        target = (folder or _SHARED) / f"{name}.safetensors"
        raise ModelError(
            f"model.pretrained: the weights of {name} are neither local nor downloadable ({_first_line(error)}); "
            f"download {_hub_file(cfg)} of {cfg['hf_hub_id']} from the Hugging Face hub and save it as {target}"
        ) from None


def _hub_file(cfg: Mapping[str, Any]) -> str:
    return str(cfg.get("hf_hub_filename") or "model.safetensors")


def _check_network() -> None:
    """Connect to the hub once: its client would retry for minutes without a network."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if address.scheme in getproxies():  # the proxy connects for us
        return
    port = address.port or (443 if address.scheme == "https" else 80)
    socket.create_connection((str(address.hostname), port), timeout=_HUB_TIMEOUT_SECONDS).close()
