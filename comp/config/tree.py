"""The whole tree, and section `predict`."""

from typing import Annotated, Literal

from pydantic import Field

from comp.config.competition import CompetitionConfig
from comp.config.data import AugmentConfig, DataConfig
from comp.config.model import ModelConfig
from comp.config.section import Fraction, Positive, Section
from comp.config.tracking import TrackConfig
from comp.config.training import OptimConfig, TrainConfig
from comp.config.tuning import TuneConfig


class PredictConfig(Section):
    """Inference: what the run's own test and suite are predicted with; validation during training stays plain."""

    batch_size: Positive = 500
    views: str = "none"
    """A row of `comp.inference.views.VIEWS`: each image is seen in several ways and the logits are averaged."""
    views_for: str = "all"
    """`all`, or `uncertain:0.25`: only the least confident quarter of each block gets more than the plain view."""
    adapt: Literal["none", "bn", "tent"] = "none"
    """`bn`: batch-norm statistics of the images at hand, blended with those of training; `tent`: less entropy on them
    too, by the normalisation layers' scales and shifts. Both are transductive: see competition.rules."""
    adapt_per: Literal["block", "file", "stream"] = "block"
    """What is adapted to at once: a block, a distortion in all its severities, or the whole suite."""
    alpha: Fraction = 0.7
    """Share of the images' own batch-norm statistics in the blend with those of training."""


class Config(Section):
    """The whole tree. A YAML file holds only departures from these defaults."""

    competition: CompetitionConfig = CompetitionConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = Field(default_factory=ModelConfig)
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()
    track: TrackConfig = TrackConfig()
    tune: TuneConfig = Field(default_factory=TuneConfig)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of every draw but the splits: initial weights, order, augmentation."""
