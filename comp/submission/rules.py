"""What a competition forbids, checked before a second is spent on training; banned families are the zoo's to tell."""

from collections.abc import Collection

from comp.config import RulesConfig
from comp.runtime.errors import ConfigError


def check_rules(rules: RulesConfig, *, pretrained: bool, imitated: Collection[str], adapt: str) -> None:
    """Refuse what the rules forbid.

    Args:
        rules: competition.rules.
        pretrained: whether it starts from outside weights.
        imitated: corruptions of the suite that the augmentation imitates.
        adapt: predict.adapt.

    Raises:
        ConfigError: naming the rule, what breaks it and how to mend it.
    """
    if pretrained and not rules.external_weights:
        raise ConfigError("model.pretrained: competition.rules.external_weights forbids it; set model.pretrained=false")
    if imitated and not rules.test_like_augmentation:
        raise ConfigError(
            f"augment.policy: imitates {', '.join(sorted(imitated))} of the suite, which "
            "competition.rules.test_like_augmentation forbids; choose a policy that does not"
        )
    check_adaptation(rules, adapt)


def check_adaptation(rules: RulesConfig, adapt: str) -> None:
    """Refuse an adaptation where predictions may not be transductive.

    Raises:
        ConfigError: naming the rule and how to mend it.
    """
    if adapt != "none" and not rules.transductive:
        raise ConfigError(
            f"predict.adapt: {adapt} adapts to the images that it predicts, which competition.rules.transductive "
            "forbids; set predict.adapt=none (--adapt none)"
        )
