"""Check a config against the competition's rules before training; `comp.models.zoo` checks banned families."""

from collections.abc import Collection, Mapping
from typing import Any

from comp.config import RulesConfig
from comp.runtime.errors import ConfigError


def check_rules(
    rules: RulesConfig,
    *,
    pretrained: bool,
    imitated: Collection[str],
    options: Mapping[str, Any],
    pseudo: bool = False,
) -> None:
    """Check pretrained weights, augmentation and prediction options against the rules.

    Args:
        rules: section `competition.rules`.
        pretrained: whether the first weights come from outside.
        imitated: the suite's corruptions that the augmentation imitates.
        options: see `check_options`.
        pseudo: whether the training uses pseudo-labels of test images.

    Raises:
        ConfigError: names the rule, the value that breaks it and how to fix it.
    """
    if pretrained and not rules.external_weights:
        raise ConfigError(
            "model.pretrained: competition.rules.external_weights=false forbids it; set model.pretrained=false"
        )
    if imitated and not rules.test_like_augmentation:
        raise ConfigError(
            f"augment.policy: imitates {', '.join(sorted(imitated))} of the suite, which "
            "competition.rules.test_like_augmentation=false forbids; choose another policy"
        )
    if pseudo and not rules.transductive:
        raise ConfigError(
            "data.pseudo.run: trains on predicted test images, which competition.rules.transductive=false forbids; "
            "remove data.pseudo"
        )
    check_options(rules, options)


def check_options(rules: RulesConfig, options: Mapping[str, Any]) -> None:
    """Check that the rules allow what predictions take from the images beside each, and from other blocks.

    Args:
        rules: section `competition.rules`.
        options: `adapt`, `prior` and `pool` of section `predict`, by name.

    Raises:
        ConfigError: names the rule and how to fix it.
    """
    if options["pool"] != "none" and not rules.cross_block:
        raise ConfigError(
            "predict.pool: combines predictions over blocks, which competition.rules.cross_block=false forbids; set "
            "predict.pool=none (--pool none)"
        )
    for name in ("adapt", "prior", "pool"):
        if options[name] != "none" and not rules.transductive:
            chosen = options[name] if isinstance(options[name], str) else "FILE"
            raise ConfigError(
                f"predict.{name}: {chosen} adapts to the predicted images, which competition.rules.transductive=false "
                f"forbids; set predict.{name}=none (--{name} none)"
            )
