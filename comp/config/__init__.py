"""Every knob, typed and documented once: `load` a YAML file with overrides, `dump` it back. No torch here.

This is the first of two phases: shape and types. Names that a registry answers for (models, policies, metrics), rules
and disk space are checked by `comp.workflows.checks.check_config`. A config never changes after loading and nothing
writes a derived value back into it.
"""

from comp.config.competition import (
    CompetitionConfig,
    OODValidationConfig,
    RulesConfig,
    SubmissionConfig,
    SuiteConfig,
)
from comp.config.data import AugmentConfig, CSVConfig, DataConfig
from comp.config.loading import dump, fingerprint, flat, from_mapping, load, load_stored, schema
from comp.config.messages import blamed
from comp.config.model import ModelConfig
from comp.config.section import seconds_of
from comp.config.tracking import TrackConfig
from comp.config.training import LookaheadConfig, OptimConfig, TrainConfig
from comp.config.tree import Config, PredictConfig
from comp.config.tuning import ConfirmConfig, TuneConfig

__all__ = [
    "AugmentConfig",
    "CSVConfig",
    "CompetitionConfig",
    "Config",
    "ConfirmConfig",
    "DataConfig",
    "LookaheadConfig",
    "ModelConfig",
    "OODValidationConfig",
    "OptimConfig",
    "PredictConfig",
    "RulesConfig",
    "SubmissionConfig",
    "SuiteConfig",
    "TrackConfig",
    "TrainConfig",
    "TuneConfig",
    "blamed",
    "dump",
    "fingerprint",
    "flat",
    "from_mapping",
    "load",
    "load_stored",
    "schema",
    "seconds_of",
]
