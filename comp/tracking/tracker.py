"""The tracker of a training, online, offline or none, and the login that decides; loads neither wandb nor a network."""

import contextlib
import netrc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from comp.config import TrackConfig
from comp.results.runs import Run
from comp.runtime.errors import ConfigError

Mode = Literal["online", "offline", "disabled"]

_CREDENTIALS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
# Environment variables that may describe another W&B run.
_FOREIGN = ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR", "WANDB_SERVICE", "WANDB_SWEEP_ID")
# W&B's own limits; it would refuse a name only after the start, or on the server.
_MAX_NAME, _MAX_TAG, _REFUSED = 128, 64, "/\\#?%:"


class Tracker:
    """Receives training events and does nothing; `comp.tracking.writer.WandbTracker` logs them to W&B."""

    def start(self, run: Run) -> None:
        """Follow a run from here on and end the one before; do nothing if it is the current one."""

    def log(self) -> None:
        """Log the epochs that have ended."""

    def save_mistakes(self, run: Run, images: Any) -> None:
        """Save the most confident mistakes of a scored run; `images` are the validation images, [N, H, W, C] uint8."""

    def close(self) -> None:
        """Log the run's results; wait ten seconds at most for the network."""


UNTRACKED = Tracker()


@contextlib.contextmanager
def open_tracker(track: TrackConfig, tracker: Tracker | None = None) -> Iterator[Tracker]:
    """Yield a config's tracker and close it in the end; one that is passed in stays open."""
    mode = wandb_mode(track)
    if tracker or mode == "disabled":
        yield tracker or UNTRACKED
        return
    from comp.tracking.writer import WandbTracker

    with contextlib.closing(WandbTracker(mode)) as opened:
        yield opened


def wandb_mode(track: TrackConfig) -> Mode:
    """Return the mode that `track.wandb` means on this machine."""
    if track.wandb != "auto":
        return track.wandb
    environment_mode = os.environ.get("WANDB_MODE", "")
    if environment_mode == "disabled":
        return "disabled"
    return "online" if environment_mode != "offline" and is_logged_in() else "offline"


def check_login(track: TrackConfig) -> None:
    """Refuse names that W&B would refuse, and online tracking without a login.

    Raises:
        ConfigError: naming the setting and how to fix it.
    """
    for key in ("project", "entity"):
        name = getattr(track, key)
        if wrong := sorted(set(name) & set(_REFUSED)):
            owner, slash, rest = name.partition("/")
            fix = f"track.entity={owner} track.project={rest}" if slash and key == "project" else "leave them out"
            raise ConfigError(f"track.{key}: W&B refuses {' '.join(wrong)} in a name, found '{name}'; {fix}")
    for key in ("project", "entity", "group"):
        if len(name := getattr(track, key)) > _MAX_NAME:
            raise ConfigError(f"track.{key}: W&B takes {_MAX_NAME} letters at most, found {len(name)}; shorten it")
    for tag in track.tags:
        if not 1 <= len(tag) <= _MAX_TAG:
            raise ConfigError(f"track.tags: W&B takes tags of 1 to {_MAX_TAG} letters, found '{tag}'")
    if track.wandb == "online" and not is_logged_in():
        raise ConfigError(
            "track.wandb: online needs a login; run `wandb login`, set WANDB_API_KEY, or set track.wandb=offline"
        )


def is_logged_in() -> bool:
    """Return whether there is a key to upload with: in the environment, or where `wandb login` stores it."""
    if any(os.environ.get(name) for name in _CREDENTIALS):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL", ""))
    for path in _netrc_files():
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            hosts = netrc.netrc(path).hosts
            is_default_host = not server.netloc and any("wandb" in host for host in hosts)
            if server.netloc in hosts or server.hostname in hosts or is_default_host:
                return True
    return False


def _netrc_files() -> list[Path]:
    if "NETRC" in os.environ:
        return [Path(os.environ["NETRC"])]
    try:
        home = Path.home()
    except RuntimeError:  # a container's user without a name has none
        return []
    return [home / ".netrc", home / "_netrc"]


def wandb_folders(folder: Path) -> dict[str, str]:
    """Return the environment variables that keep all W&B files in `folder`/wandb, and turn its error reports off."""
    root = folder.absolute() / "wandb"
    folders = {"WANDB_DATA_DIR": str(root / "data"), "WANDB_CACHE_DIR": str(root / "cache")}
    return {**folders, "WANDB_ERROR_REPORTING": "false"}


def wandb_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a W&B process for the files in `folder`, without variables of other runs."""
    return {name: value for name, value in os.environ.items() if name not in _FOREIGN} | wandb_folders(folder)
