"""Check a config against the competition's rules before training; `comp.models.zoo` checks banned families."""

from collections.abc import Collection

from comp.config import RulesConfig
from comp.runtime.errors import ConfigError


def check_rules(
    rules: RulesConfig, *, pretrained: bool, imitated: Collection[str], adapt: str, pseudo: bool = False
) -> None:
    """Check pretrained weights, augmentation and adaptation against the rules.

    Args:
        rules: section `competition.rules`.
        pretrained: whether the first weights come from outside.
        imitated: the suite's corruptions that the augmentation imitates.
        adapt: `predict.adapt`.
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
    check_adaptation(rules, adapt)


def check_adaptation(rules: RulesConfig, adapt: str) -> None:
    """Check that the rules allow adapting to the predicted images.

    Raises:
        ConfigError: names the rule and how to fix it.
    """
    if adapt != "none" and not rules.transductive:
        raise ConfigError(
            f"predict.adapt: {adapt} adapts to the predicted images, which competition.rules.transductive=false "
            "forbids; set predict.adapt=none (--adapt none)"
        )
