"""Section `track`."""

from typing import Literal

from comp.config.section import Section


class TrackConfig(Section):
    """Weights & Biases: a view of what lies in the run's folder. It changes nothing of a training."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`online`: curves are uploaded while the training goes on; `offline`: they are kept below the run's folder until
    `comp leaderboard --sync`; auto: online where one is logged in (`wandb login`, or WANDB_API_KEY), else offline, or
    what the environment's WANDB_MODE says."""
    project: str = ""
    """Empty: the competition's name."""
    entity: str = ""
    """User or team; empty: the account's own."""
    group: str = ""
    """What belongs together, such as a study's trials."""
    tags: tuple[str, ...] = ()
    artifacts: tuple[Literal["weights", "submission"], ...] = ()
    """What is uploaded beside the curves, as versioned artifacts."""
