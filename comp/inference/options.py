"""How a prediction is made beside the plain way: views and adaptation, and the name that tells them apart."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from comp.config import PredictConfig
from comp.config.tasks import TASKS
from comp.inference.views import views
from comp.results import prediction_files
from comp.runtime.errors import ConfigError

DEFAULT_ALPHA = PredictConfig().alpha


@dataclass(frozen=True)
class PredictOptions:
    """One way to predict; the defaults are the plain one.

    Attributes:
        views: a row of `comp.inference.views.VIEWS`.
        views_share: the least confident share of each block that gets more than the plain view, in (0, 1].
        adapt: `none`, `bn` or `tent`.
        adapt_per: what is adapted to at once: `block`, `file` or `stream`.
        alpha: share of the block's own batch-norm statistics, in [0, 1].
    """

    views: str = "none"
    views_share: float = 1.0
    adapt: str = "none"
    adapt_per: str = "block"
    alpha: float = DEFAULT_ALPHA

    @property
    def suffix(self) -> str:
        """`+flip-uncertain0.25+bn-file-alpha0.5`: all that departs from the plain way, empty for it."""
        return prediction_files.variant_suffix(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


PLAIN = PredictOptions()


def predict_options(section: PredictConfig) -> PredictOptions:
    """Return what a config's `predict` asks for.

    Raises:
        ConfigError: unknown views.
    """
    views(section.views)
    return PredictOptions(section.views, share_of(section.views_for), section.adapt, section.adapt_per, section.alpha)


def with_overrides(section: PredictConfig, given: Mapping[str, Any]) -> PredictOptions:
    """Return what a config's `predict` asks for with some of its fields, as a command line gives them, in their place.

    Args:
        section: of the run.
        given: fields of `predict`; None keeps the section's.

    Raises:
        ConfigError: a value that the config would not take, or unknown views.
    """
    wanted = {**section.model_dump(), **{name: value for name, value in given.items() if value is not None}}
    try:
        return predict_options(PredictConfig.model_validate(wanted))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"{option}: {first['msg']}, found '{first['input']}'") from None


def check_task(variant: PredictOptions, task: str) -> None:
    """Refuse views and adaptations that are not sound for a task.

    Raises:
        ConfigError: naming the setting and what is.
    """
    row = TASKS[task]
    if variant.adapt not in row.adaptations:
        raise ConfigError(
            f"predict.adapt: {variant.adapt} is not defined for task {task}; choose from {', '.join(row.adaptations)}"
        )
    if variant.views_share < 1 and not row.uncertain_views:
        raise ConfigError(
            f"predict.views_for: uncertain ranks images by the confidence of one class, and task {task} has several; "
            "set predict.views_for=all"
        )


def share_of(text: str) -> float:
    """Return the share that `all` or `uncertain:0.25` gives more views.

    Raises:
        ConfigError: neither of them, or a share outside (0, 1].
    """
    if text == "all":
        return 1.0
    found = re.fullmatch(r"uncertain:(\d*\.?\d+)", text)
    if not found or not 0 < float(found[1]) <= 1:
        raise ConfigError(
            f"predict.views_for: expected `all` or the least confident share, above 0 and at most 1, such as "
            f"`uncertain:0.25`, found '{text}'"
        )
    return float(found[1])
