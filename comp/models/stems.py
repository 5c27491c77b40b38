"""Model families and their `stem: cifar`: how timm models are adapted to small images.

Stock stems shrink images 4 to 16 times at once: at 32 px the last feature map of a ResNet is a single pixel. The cifar
stem makes a convolutional model's first convolution 3x3 with stride 1, removes early pooling and relaxes strides from
the front until at most three halvings are left, so that 32 px end at 4x4 (as in the CIFAR networks of He et al. 2016,
arXiv:1512.03385). Patch models get small patches, windowed ones small windows too. Pretrained first layers are kept:
resampled by `resample_kernel`, patches by timm.
"""

import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """A family of models: one timm module."""

    kind: str
    """Name in `competition.rules.banned_families`; anything with self-attention is a transformer."""
    relaxed: bool = False
    """Whether `relax_strides` makes its cifar stem."""
    arguments: Callable[[int, int], Arguments] | None = None
    """(height, width) -> the factory's arguments that make its cifar stem; None: no such arguments."""

    @property
    def has_cifar_stem(self) -> bool:
        """Whether `stem: cifar` is supported."""
        return self.relaxed or self.arguments is not None


def _patches(height: int, width: int) -> Arguments:
    """Return a patch size that gives about 8 x 8 tokens: 4 px at 32 px."""
    return {"patch_size": _divisor(height, width, at_most=min(height, width) // 8)}


def _windows(height: int, width: int) -> Arguments:
    """Return patch and window sizes for three halvings: at 32 px, 1 px and 4 tokens, which end at 4x4."""
    patch = _divisor(height, width, at_most=min(height, width) // 32)
    return {"patch_size": patch, "window_size": math.ceil(min(height, width) / patch / 8)}


def _divisor(height: int, width: int, *, at_most: int) -> int:
    common = math.gcd(height, width)
    return max(side for side in range(1, max(1, at_most) + 1) if common % side == 0)


CONVOLUTIONAL = Family("convolutional", relaxed=True)
HYBRID = Family("transformer", relaxed=True)  # attention after convolutions that shrink the image
PATCHES = Family("transformer", arguments=_patches)
WINDOWS = Family("transformer", arguments=_windows)
# Without a cifar stem: fixed stems, tables tied to one image size, or patches that no argument changes.
CONVOLUTIONAL_STOCK = Family("convolutional")
TRANSFORMER_STOCK = Family("transformer")
MLP = Family("mlp")
RECURRENT = Family("recurrent")
STATE_SPACE = Family("state_space")
UNCLASSIFIED = Family("unclassified")

FAMILIES: dict[str, Family] = {
    "beit": PATCHES,
    "byoanet": TRANSFORMER_STOCK,
    "byobnet": CONVOLUTIONAL,
    "cait": PATCHES,
    "coat": TRANSFORMER_STOCK,
    "convit": PATCHES,
    "convmixer": CONVOLUTIONAL,
    "convnext": CONVOLUTIONAL,
    "cpubone": HYBRID,
    "crossvit": TRANSFORMER_STOCK,
    "csatv2": TRANSFORMER_STOCK,
    "cspnet": CONVOLUTIONAL,
    "cspnext": CONVOLUTIONAL,
    "davit": HYBRID,
    "deepseek_vit": TRANSFORMER_STOCK,
    "deit": PATCHES,
    "densenet": CONVOLUTIONAL,
    "dla": CONVOLUTIONAL,
    "dpn": CONVOLUTIONAL,
    "edgenext": HYBRID,
    "efficientformer": TRANSFORMER_STOCK,
    "efficientformer_v2": TRANSFORMER_STOCK,
    "efficientnet": CONVOLUTIONAL,
    "efficientvim": STATE_SPACE,
    "efficientvit_mit": HYBRID,
    "efficientvit_msra": HYBRID,
    "eva": PATCHES,
    "fasternet": CONVOLUTIONAL,
    "fastvit": HYBRID,
    "focalnet": HYBRID,
    "gcvit": TRANSFORMER_STOCK,
    "gemma4_vit": TRANSFORMER_STOCK,
    "ghostnet": CONVOLUTIONAL,
    "hardcorenas": CONVOLUTIONAL,
    "hgnet": CONVOLUTIONAL,
    "hiera": TRANSFORMER_STOCK,
    "hieradet_sam2": TRANSFORMER_STOCK,
    "hrnet": CONVOLUTIONAL,
    "iformer": HYBRID,
    "inception_next": CONVOLUTIONAL,
    "inception_resnet_v2": CONVOLUTIONAL,
    "inception_v3": CONVOLUTIONAL,
    "inception_v4": CONVOLUTIONAL,
    "lcnetv2": CONVOLUTIONAL,
    "levit": TRANSFORMER_STOCK,
    "lowformer": HYBRID,
    "mambaout": CONVOLUTIONAL,
    "maxxvit": TRANSFORMER_STOCK,
    "metaformer": HYBRID,
    "mlp_mixer": MLP,
    "mobilenetv3": CONVOLUTIONAL,
    "mobilenetv5": TRANSFORMER_STOCK,
    "mobilevit": HYBRID,
    "mvitv2": TRANSFORMER_STOCK,
    "naflexvit": TRANSFORMER_STOCK,
    "nasnet": CONVOLUTIONAL,
    "nest": TRANSFORMER_STOCK,
    "nextvit": HYBRID,
    "nfnet": CONVOLUTIONAL,
    "pit": TRANSFORMER_STOCK,
    "pnasnet": CONVOLUTIONAL,
    "pvt_v2": HYBRID,
    "qwen3_vit": TRANSFORMER_STOCK,
    "rdnet": CONVOLUTIONAL,
    "regnet": CONVOLUTIONAL,
    "repghost": CONVOLUTIONAL,
    "repvit": CONVOLUTIONAL,
    "res2net": CONVOLUTIONAL,
    "resnest": CONVOLUTIONAL,
    "resnet": CONVOLUTIONAL,
    "resnetv2": CONVOLUTIONAL,
    "rexnet": CONVOLUTIONAL,
    "selecsls": CONVOLUTIONAL,
    "senet": CONVOLUTIONAL,
    "sequencer": RECURRENT,
    "shvit": TRANSFORMER_STOCK,
    "sknet": CONVOLUTIONAL,
    "starnet": CONVOLUTIONAL,
    "swiftformer": HYBRID,
    "swin_transformer": WINDOWS,
    "swin_transformer_v2": WINDOWS,
    "swin_transformer_v2_cr": WINDOWS,
    "tiny_vit": TRANSFORMER_STOCK,
    "tnt": TRANSFORMER_STOCK,
    "tresnet": CONVOLUTIONAL_STOCK,
    "twins": TRANSFORMER_STOCK,
    "vgg": CONVOLUTIONAL,
    "visformer": TRANSFORMER_STOCK,
    "vision_transformer": PATCHES,
    "vision_transformer_hybrid": TRANSFORMER_STOCK,
    "vision_transformer_relpos": PATCHES,
    "vision_transformer_sam": TRANSFORMER_STOCK,
    "vitamin": TRANSFORMER_STOCK,
    "volo": TRANSFORMER_STOCK,
    "vovnet": CONVOLUTIONAL,
    "xception": CONVOLUTIONAL,
    "xception_aligned": CONVOLUTIONAL,
    "xcit": TRANSFORMER_STOCK,
}
"""timm's modules, with the paper of each.

beit: BEiT, transformers pre-trained on masked patches (Bao et al. 2021, arXiv:2106.08254).
byoanet: bottleneck, halo and lambda networks: ResNets with attention blocks (arXiv:2101.11605, 2103.12731, 2102.08602).
byobnet: GPU-efficient networks, RepVGG and other networks of configurable blocks (arXiv:2006.14090, 2101.03697).
cait: CaiT, deeper transformers with class attention (Touvron et al. 2021, arXiv:2103.17239).
coat: CoaT, convolutional attention at several scales (Xu et al. 2021, arXiv:2104.06399).
convit: ConViT, attention that starts as a convolution (d'Ascoli et al. 2021, arXiv:2103.10697).
convmixer: ConvMixer, patches mixed by large depthwise convolutions (Trockman and Kolter 2022, arXiv:2201.09792).
convnext: ConvNeXt and ConvNeXt V2 (Liu et al. 2022, arXiv:2201.03545; Woo et al. 2023, arXiv:2301.00808).
cpubone: CPUBone, convolutions and attention for devices with few cores (arXiv:2603.26425).
crossvit: CrossViT, two patch sizes with cross-attention (Chen et al. 2021, arXiv:2103.14899).
csatv2: CSATv2, which begins with the image's DCT.
cspnet: CSPNet and Darknets with cross-stage partial blocks (Wang et al. 2019, arXiv:1911.11929).
cspnext: CSPNeXt, the backbone of RTMDet (Lyu et al. 2022, arXiv:2212.07784).
davit: DaViT, attention over windows and over channels (Ding et al. 2022, arXiv:2204.03645).
deepseek_vit: the vision transformer of DeepSeek (arXiv:2609.19969).
deit: DeiT and DeiT III, transformers for less data (Touvron et al. 2020, arXiv:2012.12877; 2022, arXiv:2204.07118).
densenet: DenseNet, each layer sees all earlier ones (Huang et al. 2016, arXiv:1608.06993).
dla: Deep layer aggregation (Yu et al. 2017, arXiv:1707.06484).
dpn: Dual path networks (Chen et al. 2017, arXiv:1707.01629).
edgenext: EdgeNeXt, convolutions and attention over channels (Maaz et al. 2022, arXiv:2206.10589).
efficientformer: EfficientFormer, a transformer at MobileNet speed (Li et al. 2022, arXiv:2206.01191).
efficientformer_v2: EfficientFormerV2 (Li et al. 2022, arXiv:2212.08059).
efficientnet: EfficientNet, EfficientNetV2, MobileNetV2 and relatives (Tan and Le 2019, arXiv:1905.11946; 2104.00298).
efficientvim: EfficientViM, a state space model for images (Lee et al. 2024, arXiv:2411.15241).
efficientvit_mit: EfficientViT with linear attention at several scales (Cai et al. 2022, arXiv:2205.14756).
efficientvit_msra: EfficientViT with cascaded group attention (Liu et al. 2023, arXiv:2305.07027).
eva: EVA and EVA-02, large pre-trained transformers (Fang et al. 2022, arXiv:2211.07636; 2023, arXiv:2303.11331).
fasternet: FasterNet, with partial convolutions (Chen et al. 2023, arXiv:2303.03667).
fastvit: FastViT and MobileCLIP's image networks (Vasu et al. 2023, arXiv:2303.14189; 2311.17049).
focalnet: Focal modulation networks (Yang et al. 2022, arXiv:2203.11926).
gcvit: Global context vision transformers (Hatamizadeh et al. 2022, arXiv:2206.09959).
gemma4_vit: the vision transformer of Gemma 4 (arXiv:2607.02770).
ghostnet: GhostNet, cheap feature maps from few (Han et al. 2019, arXiv:1911.11907).
hardcorenas: HardCoRe-NAS, searched under latency limits (Nayman et al. 2021, arXiv:2102.11646).
hgnet: PP-HGNet, GPU-friendly networks (Cui et al. 2021, arXiv:2103.05959).
hiera: Hiera, a hierarchical transformer without extras (Ryali et al. 2023, arXiv:2306.00989).
hieradet_sam2: the image network of SAM 2 (Ravi et al. 2024, arXiv:2408.00714).
hrnet: HRNet, which keeps a high resolution throughout (Wang et al. 2019, arXiv:1908.07919).
iformer: iFormer, ConvNet and transformer for phones (Zheng 2025, arXiv:2501.15369).
inception_next: InceptionNeXt (Yu et al. 2023, arXiv:2303.16900).
inception_resnet_v2: Inception-ResNet v2 (Szegedy et al. 2016, arXiv:1602.07261).
inception_v3: Inception v3 (Szegedy et al. 2015, arXiv:1512.00567).
inception_v4: Inception v4 (Szegedy et al. 2016, arXiv:1602.07261).
lcnetv2: PP-LCNetV2, for CPUs (arXiv:2103.05959).
levit: LeViT, a fast transformer on convolutions (Graham et al. 2021, arXiv:2104.01136).
lowformer: LowFormer, attention at a low resolution (arXiv:2409.03460).
mambaout: MambaOut, gated convolutions without the state space model (Yu and Wang 2024, arXiv:2405.07992).
maxxvit: MaxViT and CoAtNet (Tu et al. 2022, arXiv:2204.01697; Dai et al. 2021, arXiv:2106.04803).
metaformer: PoolFormer, ConvFormer and CAFormer (Yu et al. 2021, arXiv:2111.11418; 2022, arXiv:2210.13452).
mlp_mixer: MLP-Mixer, ResMLP and gMLP (Tolstikhin et al. 2021, arXiv:2105.01601; 2105.03404; 2105.08050).
mobilenetv3: MobileNetV3, FBNetV3 and MobileNetV4 (Howard et al. 2019, arXiv:1905.02244; 2404.10518).
mobilenetv5: MobileNetV5, the image network of Gemma 3n, after MobileNetV4 (arXiv:2404.10518).
mobilevit: MobileViT and MobileViTv2 (Mehta and Rastegari 2021, arXiv:2110.02178; 2022, arXiv:2206.02680).
mvitv2: MViTv2, multiscale transformers (Li et al. 2021, arXiv:2112.01526).
naflexvit: vision transformers for any aspect ratio (arXiv:2010.11929, 2212.08013, 2307.06304).
nasnet: NASNet-A, from architecture search (Zoph et al. 2017, arXiv:1707.07012).
nest: Nested transformers (Zhang et al. 2021, arXiv:2105.12723).
nextvit: Next-ViT, for deployment (Li et al. 2022, arXiv:2207.05501).
nfnet: NF-ResNets and NFNets, without batch norm (Brock et al. 2021, arXiv:2101.08692, 2102.06171).
pit: PiT, a transformer with pooling (Heo et al. 2021, arXiv:2103.16302).
pnasnet: PNASNet, from progressive search (Liu et al. 2017, arXiv:1712.00559).
pvt_v2: PVT v2, a pyramid of linear attention (Wang et al. 2021, arXiv:2106.13797).
qwen3_vit: the vision transformer of Qwen3-VL (arXiv:2511.21631).
rdnet: RDNet, DenseNets reloaded (Kim et al. 2024, arXiv:2403.19588).
regnet: RegNet X, Y, Z and V (Radosavovic et al. 2020, arXiv:2003.13678).
repghost: RepGhost, re-parameterised (Chen et al. 2022, arXiv:2211.06088).
repvit: RepViT, a mobile ConvNet designed like a transformer (Wang et al. 2023, arXiv:2307.09283).
res2net: Res2Net, several scales within a block (Gao et al. 2019, arXiv:1904.01169).
resnest: ResNeSt, split attention over channels (Zhang et al. 2020, arXiv:2004.08955).
resnet: ResNet, ResNeXt, Wide ResNet, SE-ResNet and the D variants (He et al. 2015, arXiv:1512.03385; 1812.01187).
resnetv2: pre-activation ResNets and Big Transfer (He et al. 2016, arXiv:1603.05027; Kolesnikov et al. 2019,
    arXiv:1912.11370).
rexnet: ReXNet (Han et al. 2020, arXiv:2007.00992).
selecsls: SelecSLS, the network of XNect (Mehta et al. 2019, arXiv:1907.00837).
senet: the first squeeze-and-excitation networks (Hu et al. 2017, arXiv:1709.01507).
sequencer: Sequencer, LSTMs over rows and columns (Tatsunami and Taki 2022, arXiv:2205.01972).
shvit: SHViT, with single-head attention (Yun and Ro 2024, arXiv:2401.16456).
sknet: Selective kernel networks (Li et al. 2019, arXiv:1903.06586).
starnet: StarNet, products of features (Ma et al. 2024, arXiv:2403.19967).
swiftformer: SwiftFormer, additive attention (Shaker et al. 2023, arXiv:2303.15446).
swin_transformer: Swin, attention in shifted windows (Liu et al. 2021, arXiv:2103.14030).
swin_transformer_v2: Swin V2, official (Liu et al. 2021, arXiv:2111.09883).
swin_transformer_v2_cr: Swin V2, an independent implementation (Liu et al. 2021, arXiv:2111.09883).
tiny_vit: TinyViT, distilled in pre-training (Wu et al. 2022, arXiv:2207.10666).
tnt: Transformer in transformer (Han et al. 2021, arXiv:2103.00112).
tresnet: TResNet, for GPUs (Ridnik et al. 2020, arXiv:2003.13630).
twins: Twins, local and global attention in turn (Chu et al. 2021, arXiv:2104.13840).
vgg: VGG (Simonyan and Zisserman 2014, arXiv:1409.1556).
visformer: Visformer (Chen et al. 2021, arXiv:2104.12533).
vision_transformer: ViT, with many pre-trainings (Dosovitskiy et al. 2020, arXiv:2010.11929).
vision_transformer_hybrid: ViT on the feature maps of a ResNet (Dosovitskiy et al. 2020, arXiv:2010.11929).
vision_transformer_relpos: ViT with relative positions (arXiv:2010.11929, 2111.09883).
vision_transformer_sam: the image network of Segment Anything (Kirillov et al. 2023, arXiv:2304.02643).
vitamin: ViTamin, for image and text (Chen et al. 2024, arXiv:2404.02132).
volo: VOLO, outlook attention (Yuan et al. 2021, arXiv:2106.13112).
vovnet: VoVNet, one-shot aggregation (Lee et al. 2019, arXiv:1904.09730).
xception: Xception, depthwise separable convolutions (Chollet 2016, arXiv:1610.02357).
xception_aligned: Xception as in DeepLab (Chen et al. 2018, arXiv:1802.02611).
xcit: XCiT, attention between channels (El-Nouby et al. 2021, arXiv:2106.09681).
"""

# Models whose timm module holds several kinds.
EXCEPTIONS: dict[str, Family] = {
    "mobilenetv4_hybrid*": TRANSFORMER_STOCK,
    "resnet*_clip": CONVOLUTIONAL_STOCK,  # their attention pool is tied to one image size
}

OWN_KINDS = {
    "fully_connected": "mlp",
    "mlp": "mlp",
    "residual_mlp": "mlp",
    "convnet": "convolutional",
    "simple_cnn": "convolutional",
    "residual_cnn": "convolutional",
    "challenge_cnn": "convolutional",
    "imagenette_cnn": "convolutional",
    "fastnet": "convolutional",
}


def family_of(name: str, module: str) -> Family:
    """Return a timm model's family: by name if its module holds several kinds, else by module."""
    for pattern, family in EXCEPTIONS.items():
        if fnmatch.fnmatchcase(name, pattern):
            return family
    return FAMILIES.get(module, UNCLASSIFIED)


# Halvings to keep: 32 px -> 4x4.
_HALVINGS = 3


# Large enough to trace every halving of a stock network without an empty map.
_TRACED_SIZE = 128


def relax_strides(inner: nn.Module, channels: int) -> None:
    """Make the first convolution 3x3 with stride 1 and remove early halvings until three are left, in place.

    Args:
        inner: a timm model with its stock stem.
        channels: of the images.
    """
    halvings = _trace_halvings(inner, channels)
    total = max((before + count for before, count in halvings.values()), default=0)
    excess = max(1, total - _HALVINGS)
    first = next((name for name, module in inner.named_modules() if _is_convolution(module)), None)
    for name, (before, _) in halvings.items():
        if before < excess:
            _relax(inner, name, first=name == first)


def _trace_halvings(inner: nn.Module, channels: int) -> dict[str, tuple[int, int]]:
    """Return layers that shrink the map: name -> (halvings before it, its own halvings), in execution order."""
    halvings: dict[str, tuple[int, int]] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            before, after = inputs[0].shape[-1], output.shape[-1]
            if before >= 1.5 * after:
                halvings[name] = (round(math.log2(_TRACED_SIZE / before)), round(math.log2(before / after)))

        return hook

    # Blocks have a `stride` too, but a convolution or pool inside shrinks the map.
    leaves = [(name, m) for name, m in inner.named_modules() if _is_convolution(m) or not list(m.children())]
    strided = [(name, module) for name, module in leaves if _stride(module) > 1]
    handles = [module.register_forward_hook(record(name)) for name, module in strided]
    was_training = inner.training
    inner.eval()
    with torch.no_grad():
        device = next(inner.parameters()).device
        images = torch.zeros(1, channels, _TRACED_SIZE, _TRACED_SIZE, device=device)
        inner.forward_features(images)  # type: ignore[operator]
    inner.train(was_training)
    for handle in handles:
        handle.remove()
    return halvings


def _stride(module: nn.Module) -> int:
    stride = getattr(module, "stride", 1)
    strides = stride if isinstance(stride, tuple | list) else (stride,)
    return max((value for value in strides if isinstance(value, int)), default=1)


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), nn.Parameter) and hasattr(module, "kernel_size")


def _relax(inner: nn.Module, name: str, *, first: bool) -> None:
    # Some families define convolutions with torch's attributes but not its class.
    layer: Any = inner.get_submodule(name)
    if not _is_convolution(layer):  # a pool or a blur
        inner.set_submodule(name, nn.Identity())
        return
    layer.stride = (1, 1)
    kernel = layer.weight.shape[-1]
    taps = 3 if first and kernel > 1 else kernel + 1 - kernel % 2
    if taps != kernel:
        layer.weight = nn.Parameter(resample_kernel(layer.weight.detach(), taps))
        layer.kernel_size = (taps, taps)
    if not _pads_same(layer):
        padding = max(layer.dilation) * (taps // 2)
        layer.padding = (padding, padding)


def _pads_same(module: nn.Module) -> bool:
    """Whether a convolution pads to the "same" size in `forward`, as TensorFlow's do."""
    return type(module).__name__.endswith("Same") or getattr(module, "same_pad", False)


def resample_kernel(kernels: Tensor, taps: int) -> Tensor:
    """Resample kernels [O, I, k, k] to [O, I, taps, taps], keeping each kernel's sum.

    The sum is the response to a flat image, so the scale that the next norm layer learnt stays valid.
    """
    resampled = F.interpolate(kernels, (taps, taps), mode="bilinear", align_corners=False, antialias=True)
    area = kernels.shape[-1] * kernels.shape[-2] / taps**2
    scaled = resampled * area
    # Interpolation weighs edge taps unevenly; spread the rest of the sum evenly.
    missing = kernels.sum((-2, -1), keepdim=True) - scaled.sum((-2, -1), keepdim=True)
    return scaled + missing / taps**2
