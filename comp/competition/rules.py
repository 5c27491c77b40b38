"""What a competition forbids, checked before a second is spent on training."""

from collections.abc import Collection

from comp.config import RulesConfig
from comp.errors import ConfigError


def check(rules: RulesConfig, *, family: str, pretrained: bool, imitated: Collection[str]) -> None:
    """Refuse what the rules forbid.

    Args:
        rules: competition.rules.
        family: the model's architecture family (`resnet`, `transformer` ...).
        pretrained: whether it starts from outside weights.
        imitated: corruptions of the suite that the augmentation imitates.

    Raises:
        ConfigError: naming the rule, what breaks it and how to mend it.
    """
    if family in rules.banned_families:
        raise ConfigError(
            f"model.name: is of the family '{family}', which competition.rules.banned_families forbids; "
            "`comp models` lists others"
        )
    if pretrained and not rules.external_weights:
        raise ConfigError("model.pretrained: competition.rules.external_weights forbids it; set model.pretrained=false")
    if imitated and not rules.test_like_augmentation:
        raise ConfigError(
            f"augment.policy: imitates {', '.join(sorted(imitated))} of the suite, which "
            "competition.rules.test_like_augmentation forbids; choose a policy that does not"
        )
