"""The table of systems: a config each, the published number, and the recipe of ours for the same network."""

from dataclasses import dataclass

_WEIGHTS = "ResNet-18's ImageNet weights"


@dataclass(frozen=True)
class Row:
    """One system.

    Attributes:
        config: a file's stem in configs/coursework.
        system: in words.
        published: the published result in words; empty: none.
        accuracy: the published test accuracy, where one stands for this very system.
        precision: the published precision, weighted by class; None: none.
        best: stem of our recipe for the same network; empty: none.
        start: stem of the config whose run gives the first weights, or the features; empty: none.
        probe: classifier on the features of `start`'s run; empty: the network is trained.
        missing: what could not be had here, so that nothing was run; empty: nothing.
        seeds: how many seeds are run, from 0.
    """

    config: str
    system: str
    published: str = ""
    accuracy: float | None = None
    precision: float | None = None
    best: str = ""
    start: str = ""
    probe: str = ""
    missing: str = ""
    seeds: int = 1


def _plain(config: str, system: str, accuracy: float, *, precision: float | None = None, seeds: int = 1) -> Row:
    published = f"{accuracy:.2%}" + (f", weighted precision {precision:.2%}" if precision else "")
    return Row(config, system, published, accuracy, precision, best=f"best_{config}", seeds=seeds)


def _frozen(net: str, which: str, system: str, published: str = "") -> Row:
    missing = _WEIGHTS if net == "resnet18" else ""
    return Row(f"cifar10_{net}_frozen_{which}", system, published, missing=missing)


def _away(config: str, system: str, published: str, missing: str, start: str = "", probe: str = "") -> Row:
    return Row(config, system, published, missing=missing, start=start, probe=probe)


_HALVES = "CIFAR-10, last five classes from the first five"
_HUNDRED = "CIFAR-10 to CIFAR-100"
_DEPTHS = {2: (0.6789, 0.7691), 3: (0.7414, 0.8048), 6: (0.8111, 0.8367)}
_FROZEN = {
    "none": "nothing", "stem": "stem", "1": "stem, layer 1", "2": "stem, layers 1 and 2", "3": "stem, layers 1 to 3",
    "4": "all but the head",
}  # fmt: skip
_IMAGENETTE = {"": ("base", "65.1%"), "_bn": ("batch norm", "70.8%"), "_dropout": ("dropout", "64.8%"),
               "_augmentation": ("augmentation", ""), "_all": ("all of them", "")}  # fmt: skip
_TUNED = {"finetuned": ("fine-tuned", "95.8%"), "frozen": ("frozen", "97.1%"),
          "frozen_bn": ("frozen, batch norm not", "95.7%")}  # fmt: skip

ROWS: tuple[Row, ...] = (
    _plain("mnist_fully_connected", "MNIST, fully connected 512-256, SiLU", 0.9841, seeds=3),
    _plain("cifar10_fully_connected", "CIFAR-10, fully connected 1024-512-256, SiLU", 0.4555),
    _plain("cifar10_convnet", "CIFAR-10, convnet 12-24-48, SiLU", 0.7736),
    _plain("mnist_mlp", "MNIST, mlp 784-128-64", 0.9739, precision=0.9743, seeds=3),
    _plain("mnist_residual_mlp", "MNIST, residual_mlp of 2 blocks 110 wide", 0.9773,
           precision=0.9775, seeds=3),
    *(_plain(f"cifar10_simple_cnn_{depth}", f"CIFAR-10, simple_cnn, depth {depth}", plain)
      for depth, (plain, _) in _DEPTHS.items()),
    *(_plain(f"cifar10_residual_cnn_{depth}", f"CIFAR-10, residual_cnn, depth {depth}", residual)
      for depth, (_, residual) in _DEPTHS.items()),
    *(_frozen("resnet18", which, f"CIFAR-10, ResNet-18 at 224 px, frozen: {what}",
              "78%" if which == "4" else "about 89% at best of these") for which, what in _FROZEN.items()),
    *(_frozen("lite0", which, f"CIFAR-10, EfficientNet-lite0 at 96 px, frozen: {what}")
      for which, what in _FROZEN.items()),
    _away("cifar100_finetuned", f"{_HUNDRED}: linear SVM", "16.95%", "CIFAR-100", "cifar10_residual_cnn_3",
          "linear_svm"),
    _away("cifar100_finetuned", f"{_HUNDRED}: 5 nearest neighbours", "9.99%", "CIFAR-100", "cifar10_residual_cnn_3",
          "knn"),
    _away("cifar100_finetuned", f"{_HUNDRED}: fine-tuned", "39.48%", "CIFAR-100", "cifar10_residual_cnn_3"),
    Row("cifar10_first_five", "CIFAR-10, first five classes"),
    Row("cifar10_last_five", f"{_HALVES}: linear SVM", start="cifar10_first_five", probe="linear_svm"),
    Row("cifar10_last_five", f"{_HALVES}: 5 nearest neighbours", start="cifar10_first_five", probe="knn"),
    Row("cifar10_last_five", f"{_HALVES}: fine-tuned", start="cifar10_first_five"),
    Row("cifar10_last_five", "CIFAR-10, last five classes from scratch"),
    *(_away(f"imagenette_cnn{suffix}", f"Imagenette, imagenette_cnn: {what}", published, "Imagenette")
      for suffix, (what, published) in _IMAGENETTE.items()),
    *(_away(f"imagenette_resnet18_{suffix}", f"Imagenette, ResNet-18: {what}", published, f"Imagenette, {_WEIGHTS}")
      for suffix, (what, published) in _TUNED.items()),
    *(_away(f"hymenoptera_resnet18_{suffix}", f"Ants and bees, ResNet-18: {what}", "", f"the images, {_WEIGHTS}")
      for suffix, (what, _) in _TUNED.items()),
    _away("challenge_part1", "CIFAR-100 challenge, part 1: challenge_cnn", "OOD 0.291", "CIFAR-100"),
    _away("challenge_part2", "CIFAR-100 challenge, part 2: ResNet-18, CIFAR stem", "OOD 0.327", "CIFAR-100"),
    _away("challenge_part3", "CIFAR-100 challenge, part 3: pretrained ResNet-18, CIFAR stem", "OOD 0.573",
          f"CIFAR-100, {_WEIGHTS}"),
)  # fmt: skip
