"""Section `model`."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from comp.config.section import PATH, Broken, FrozenMapping, Section, Size, UserPath


class ModelConfig(Section):
    """Which network, how it is adapted, where its first weights come from, and which of them are trained."""

    name: str = "simple_cnn"
    """A network of ours or any timm model, with or without the tag of its weights (`resnet18.a1_in1k`)."""
    stem: Literal["stock", "cifar", "resize"] = "stock"
    """`cifar` fits a timm model's first layers to small images; `resize` keeps them and enlarges the images."""
    input_size: Size | None = None
    """Image side in pixels, or [height, width], that `stem: resize` brings images to, inside the model."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How `stem: resize` enlarges."""
    pretrained: Annotated[bool | str, PATH] = False
    """true: timm's weights, from `data.root`/weights/NAME.safetensors or the hub; a path: a .safetensors or .pth
    file."""
    from_run: UserPath = ""
    """A trained run's folder whose best weights are the first ones; a head for other classes starts fresh."""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-fA-F]{8,64})?$")] = ""
    """Hash the weights file must have, or its first 8 digits or more; empty: any."""
    drop_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout before the classifier; null: the network's own."""
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Stochastic depth of a timm model; null: the network's own."""
    timm: FrozenMapping = Field(default_factory=dict)
    """Arguments of timm's factory that are not fields here (`drop_block_rate`, `act_layer`, ...)."""
    args: FrozenMapping = Field(default_factory=dict)
    """Arguments of our own networks (depth, hidden, ...)."""
    normalize: (
        Literal["auto", "dataset", "pretrained", "per_image"] | dict[Literal["mean", "std"], tuple[float, ...]]
    ) = "auto"
    """What the first layer subtracts and divides by; auto: the weights' own if pretrained, else the dataset's;
    per_image: the dataset's, and then every image's own, which takes haze and weak contrast out."""
    freeze: tuple[str, ...] = ()
    """Blocks that are not trained: names or globs of the network's modules and parameters, or `all_but_head`."""
    unfreeze: dict[Annotated[int, Field(ge=1)], tuple[str, ...]] = Field(default_factory=dict)
    """Epoch (from 1) -> frozen blocks that are trained from it on; names or globs, `*` for all."""
    freeze_bn_stats: bool = True
    """Whether batch norm in frozen blocks keeps its statistics; false: they move."""
    unfreeze_bn: bool = False
    """Whether batch norm in frozen blocks is trained after all: statistics, scale and shift."""

    def broken(self) -> Iterator[Broken]:
        """See `Section`."""
        if (self.stem == "resize") != (self.input_size is not None):
            yield Broken(
                ("stem", "input_size"),
                "model.stem: resize and input_size go together, such as model: {stem: resize, input_size: 64}",
            )
        if self.from_run and self.pretrained:
            yield Broken(
                ("from_run", "pretrained"),
                "model: from_run and pretrained both say where the first weights come from; keep one of them",
            )
        has_weights = bool(self.pretrained or self.from_run)
        if self.sha256 and not has_weights:
            yield Broken(
                ("sha256",), "model.sha256: is the hash of a weights file, and there is none; it needs model.pretrained"
            )
        if self.normalize == "pretrained" and not has_weights:
            yield Broken(
                ("normalize",),
                "model.normalize: pretrained is what the weights were made with; it needs model.pretrained",
            )
