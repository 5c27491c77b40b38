"""Whether one is logged in to W&B, told without loading it and without a network; and what a process may know."""

import contextlib
import netrc
import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from comp.config import TrackConfig
from comp.runtime.errors import ConfigError

Mode = Literal["online", "offline", "disabled"]

_CREDENTIALS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
# What the environment may say of some other run of W&B's.
OF_OTHERS = ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR", "WANDB_SERVICE", "WANDB_SWEEP_ID")


def mode_of(track: TrackConfig) -> Mode:
    """Return what `track.wandb` comes to here."""
    if track.wandb != "auto":
        return track.wandb
    told = os.environ.get("WANDB_MODE", "")
    if told == "disabled":
        return "disabled"
    return "online" if told != "offline" and is_logged_in() else "offline"


# W&B's own limits: a run of another name is only refused when its writer has begun, or by the server.
_MOST_LETTERS, _MOST_TAG_LETTERS, _REFUSED = 128, 64, "/\\#?%:"


def check_login(track: TrackConfig) -> None:
    """Refuse names that W&B would, and to track online without a login: nothing of it would arrive.

    Raises:
        ConfigError: naming the setting and how to mend it.
    """
    for key in ("project", "entity"):
        name = getattr(track, key)
        if wrong := sorted(set(name) & set(_REFUSED)):
            owner, slash, rest = name.partition("/")
            mend = f"track.entity={owner} track.project={rest}" if slash and key == "project" else "leave them out"
            raise ConfigError(f"track.{key}: W&B refuses {' '.join(wrong)} in a name, found '{name}'; {mend}")
    for key in ("project", "entity", "group"):
        if len(name := getattr(track, key)) > _MOST_LETTERS:
            raise ConfigError(f"track.{key}: W&B takes {_MOST_LETTERS} letters at most, found {len(name)}; shorten it")
    for tag in track.tags:
        if not 1 <= len(tag) <= _MOST_TAG_LETTERS:
            raise ConfigError(f"track.tags: W&B takes tags of 1 to {_MOST_TAG_LETTERS} letters, found '{tag}'")
    if track.wandb == "online" and not is_logged_in():
        raise ConfigError(
            "track.wandb: online needs a login, and there is none; run `wandb login`, set WANDB_API_KEY, or set "
            "track.wandb=offline"
        )


def is_logged_in() -> bool:
    """Tell whether there is a key to upload with: in the environment, or where `wandb login` keeps it."""
    if any(os.environ.get(name) for name in _CREDENTIALS):
        return True
    own = urlsplit(os.environ.get("WANDB_BASE_URL", ""))
    for path in _netrc_files():
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            hosts = netrc.netrc(path).hosts
            if own.netloc in hosts or own.hostname in hosts or (not own.netloc and any("wandb" in h for h in hosts)):
                return True
    return False


def _netrc_files() -> list[Path]:
    if "NETRC" in os.environ:
        return [Path(os.environ["NETRC"])]
    try:
        home = Path.home()
    except RuntimeError:  # a container's nameless user has none
        return []
    return [home / ".netrc", home / "_netrc"]


def places(folder: Path) -> dict[str, str]:
    """Return the variables that keep all of W&B's files in `folder`/wandb, and reports from its makers."""
    own = folder.absolute() / "wandb"
    return {
        "WANDB_DATA_DIR": str(own / "data"), "WANDB_CACHE_DIR": str(own / "cache"), "WANDB_ERROR_REPORTING": "false"
    }  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process of W&B's for what lies in `folder`: without what concerns other runs."""
    return {name: value for name, value in os.environ.items() if name not in OF_OTHERS} | places(folder)
