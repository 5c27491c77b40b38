"""Prediction options: views, adaptation, known class shares, pooled blocks, and the suffix that names them."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from comp.config import CompetitionConfig, PredictConfig
from comp.config.tasks import TASKS
from comp.inference.views import views
from comp.results import prediction_files
from comp.runtime.errors import ConfigError
from comp.submission.class_shares import Prior, read_prior

DEFAULT_ALPHA = PredictConfig().alpha


@dataclass(frozen=True)
class PredictOptions:
    """How to predict; the defaults are the plain prediction.

    Attributes:
        views: a row of `comp.inference.views.VIEWS`.
        views_share: the least confident share of each block that gets all views, in (0, 1].
        adapt: `none`, `bn`, `tent` or `roid`.
        adapt_per: what is adapted to together: `block`, `file` or `stream`.
        alpha: share of the block's batch-norm statistics, in [0, 1].
        prior: known class shares of each block: `none`, `uniform`, `train`, or each class's.
        pool: `none`, or `blocks` to combine a photograph's predictions over the blocks.
    """

    views: str = "none"
    views_share: float = 1.0
    adapt: str = "none"
    adapt_per: str = "block"
    alpha: float = DEFAULT_ALPHA
    prior: Prior = "none"
    pool: str = "none"

    @property
    def suffix(self) -> str:
        """All that differs from the plain prediction, such as `+flip-uncertain0.25+bn-file-alpha0.5`."""
        return prediction_files.variant_suffix(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


PLAIN = PredictOptions()


def predict_options(section: PredictConfig) -> PredictOptions:
    """Return the options of a config's `predict` section.

    Raises:
        ConfigError: unknown views, or no shares in the file of `prior`.
    """
    views(section.views)
    return PredictOptions(
        views=section.views,
        views_share=parse_views_share(section.views_for),
        adapt=section.adapt,
        adapt_per=section.adapt_per,
        alpha=section.alpha,
        prior=read_prior(section.prior),
        pool=section.pool,
    )


def with_overrides(section: PredictConfig, overrides: Mapping[str, Any]) -> PredictOptions:
    """Return the options of a config's `predict` section with some fields replaced by command-line values.

    Args:
        section: of the run.
        overrides: field -> value; None keeps the section's.

    Raises:
        ConfigError: an invalid value, or unknown views.
    """
    changed = {name: value for name, value in overrides.items() if value is not None}
    try:
        return predict_options(PredictConfig.model_validate({**section.model_dump(), **changed}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"{option}: {first['msg']}, found '{first['input']}'") from None


def check_options(options: PredictOptions, competition: CompetitionConfig, task: str) -> None:
    """Check that options are valid for a task, and that the competition declares the shares that they use.

    Raises:
        ConfigError: names the setting and the valid values.
    """
    row = TASKS[task]
    if options.adapt not in row.adaptations:
        raise ConfigError(
            f"predict.adapt: {options.adapt} is not defined for task {task}; choose from {', '.join(row.adaptations)}"
        )
    if options.views_share < 1 and not row.uncertain_views:
        raise ConfigError(
            f"predict.views_for: uncertain ranks images by the confidence in one class, which task {task} lacks; "
            "set predict.views_for=all"
        )
    if options.pool != "none" and not row.shifted:
        raise ConfigError(f"predict.pool: combines probabilities of classes, which task {task} lacks; set it to none")
    if options.prior != "none":
        _check_prior(competition, task)


def _check_prior(competition: CompetitionConfig, task: str) -> None:
    if TASKS[task].decision != "arg_max":
        raise ConfigError(
            f"predict.prior: not defined for task {task}, which does not take the likeliest class; set it to none"
        )
    if competition.balance == "unknown":
        raise ConfigError(
            "predict.prior: scales each block to known class shares, and competition.balance is unknown; if the "
            "competition declares these shares, set competition.balance=declared, else predict.prior=none (--prior "
            "none)"
        )
    if competition.test_shares:
        raise ConfigError(
            "predict.prior: competition.test_shares already lets decisions use the test's shares; remove one of the "
            "two (a .csv with the columns class and share can be the prior)"
        )


def parse_views_share(text: str) -> float:
    """Parse `all` or `uncertain:0.25` into the share of images that gets all views.

    Raises:
        ConfigError: another form, or a share outside (0, 1].
    """
    if text == "all":
        return 1.0
    match = re.fullmatch(r"uncertain:(\d*\.?\d+)", text)
    if not match or not 0 < float(match[1]) <= 1:
        raise ConfigError(
            f"predict.views_for: expected `all`, or the least confident share in (0, 1] as in `uncertain:0.25`, "
            f"found '{text}'"
        )
    return float(match[1])
