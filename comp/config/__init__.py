"""Configs: all settings, typed and documented in one place; `load` a YAML file with overrides, `dump` it. Torch-free.

Loading is the first of two checks: structure and types. `comp.workflows.checks.check_config` then checks registered
names (models, policies, metrics), rules and disk space. A config never changes after loading, and derived values are
never written back to it.
"""

from comp.config.competition import (
    CompetitionConfig,
    OODValidationConfig,
    RulesConfig,
    SubmissionConfig,
    SuiteConfig,
)
from comp.config.data import AugmentConfig, CSVConfig, DataConfig, PseudoConfig
from comp.config.loading import dump, fingerprint, flatten, from_mapping, load, load_stored, schema, settings
from comp.config.messages import naming_overrides
from comp.config.section import parse_duration
from comp.config.training import LookaheadConfig, ModelConfig, OptimConfig, TeacherConfig, TrainConfig
from comp.config.tree import Config, ConfirmConfig, PredictConfig, TrackConfig, TuneConfig

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
    "PseudoConfig",
    "RulesConfig",
    "SubmissionConfig",
    "SuiteConfig",
    "TeacherConfig",
    "TrackConfig",
    "TrainConfig",
    "TuneConfig",
    "dump",
    "fingerprint",
    "flatten",
    "from_mapping",
    "load",
    "load_stored",
    "naming_overrides",
    "parse_duration",
    "schema",
    "settings",
]
