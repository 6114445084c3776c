"""The layers that `sections.py` compares on: every class of convolution and pooling, as descriptors."""

from __future__ import annotations

from dataclasses import replace

from fastconv.networks import problems

# Where whole networks of a class are not in `fastconv.networks`: representative layers of the papers named.
_STEMS = (
    "n1c3h224w224k64r11s11p2u4",  # AlexNet
    "n1c3h224w224k96r7s7p1u2",  # ZFNet
    "n1c3h224w224k64r7s7p3u2",  # ResNet, DenseNet, GoogLeNet
    "n1c3h299w299k32r3s3u2",  # Inception-V3
    "n1c3h224w224k32r3s3p1u2",  # MobileNet, EfficientNet
)
_POINTWISE = (
    "n1c32h112w112k16r1s1", "n1c24h56w56k144r1s1", "n1c96h14w14k576r1s1", "n1c320h7w7k1280r1s1",  # MobileNet-V2
    "n1c192h28w28k64r1s1", "n1c480h14w14k192r1s1", "n1c832h7w7k384r1s1",  # GoogLeNet
)  # fmt: skip
_DEPTHWISE = (
    "n1c32h112w112k32r3s3p1g32", "n1c96h112w112k96r3s3p1u2g96", "n1c144h56w56k144r3s3p1g144",  # MobileNet-V2
    "n1c384h14w14k384r3s3p1g384", "n1c960h7w7k960r3s3p1g960",
    "n1c72h56w56k72r5s5p2u2g72", "n1c120h28w28k120r5s5p2g120", "n1c672h14w14k672r5s5p2u2g672",  # MobileNet-V3
    "n1c144h56w56k144r5s5p2u2g144", "n1c480h14w14k480r5s5p2g480", "n1c1152h7w7k1152r5s5p2g1152",  # EfficientNet-B0
)  # fmt: skip
_GROUPED = (  # ResNeXt-50 32x4d
    "n1c128h56w56k128r3s3p1g32", "n1c256h56w56k256r3s3p1u2g32", "n1c256h28w28k256r3s3p1g32",
    "n1c512h14w14k512r3s3p1g32", "n1c1024h7w7k1024r3s3p1g32",
    "n1c96h27w27k256r5s5p2g2",  # AlexNet's, on two towers
)  # fmt: skip
_DILATED = (
    "n1c64h56w56k64r3s3p2d2", "n1c256h28w28k256r3s3p2d2", "n1c512h28w28k512r3s3p4d4",  # DeepLab's output stride 8
    "n1c128h33w33k128r3s3p12d12", "n1c256h14w14k256r3s3p12d12", "n1c21h64w64k21r3s3p8d8",
)  # fmt: skip
_ONE_BY_N = (
    "n1c128h17w17k128r1s7p0.3", "n1c128h17w17k192r7s1p3.0", "n1c384h8w8k384r1s3p0.1",  # Inception-V3
    "n1c384h8w8k384r3s1p1.0", "n1c64h1w1000k64r1s9p0.4", "n1c1h1w16000k64r1s80u1.4",  # sequences and raw sound
)  # fmt: skip
_TINY = (
    "n1c8h8w8k8r3s3p1", "n1c8h8w8k8r1s1", "n1c8h8w8k8r3s3p1g8", "n1c16h16w16k16r3s3p1", "n1c32h8w8k32r3s3p1",
    "n1c16h32w32k16r3s3p1u2", "n1c32h16w16k32r1s1", "n1c32h32w32k8r1s1",
)  # fmt: skip
_FEW_CHANNELS = (
    "n1c1h28w28k32r3s3p1", "n1c1h28w28k6r5s5p2", "n1c1h256w256k16r3s3p1", "n1c3h32w32k64r3s3p1",
    "n1c3h128w128k3r3s3p1", "n1c64h112w112k1r3s3p1", "n1c64h112w112k3r3s3p1",
)  # fmt: skip
_ODD = (
    "n1c17h31w31k19r5s3p2.1", "n1c33h29w37k47r3s3p1", "n1c65h15w15k67r3s3p1u2", "n1c13h61w61k29r1s1",
    "n1c100h23w23k50r3s3p1", "n3c31h17w19k37r3s5p1.2d2.1", "n1c51h45w45k17r4s4p1u3",
)  # fmt: skip
_FUSED = (
    "n1c3h224w224k64r3s3p1_{}_bias_relu_max2", "n1c64h112w112k128r3s3p1_{}_bias_relu_max2",
    "n1c128h28w28k128r3s3p1_{}_bias_relu_max2", "n1c3h224w224k64r7s7p3u2_{}_bias_relu_max3u2p1",
    "n1c3h224w224k64r11s11p2u4_{}_bias_relu_max3u2", "n1c64h27w27k192r5s5p2_{}_bias_relu_max3u2",
    "n1c256h13w13k256r3s3p1_{}_bias_relu_max3u2", "n1c32h32w32k32r3s3p1_{}_bias_relu_avg2",
    "n1c1h28w28k8r5s5p2_{}_bias_relu_max2",
)  # fmt: skip
_POOLS = (
    "n1c64h112w112_max3u2p1", "n1c96h55w55_max3u2", "n1c64h224w224_max2", "n1c512h14w14_max2",
    "n1c64h112w112_avg3u2p1", "n1c256h28w28_avg2", "n1c2048h7w7_avg7", "n1c35h35w35_avg3u1p1", "n1c64h56w56_lp2",
)  # fmt: skip


def _channels_last(*heads: str) -> tuple[str, ...]:
    return tuple(f"{head}_f32_nhwc" for head in heads)


def _both(*heads: str) -> tuple[str, ...]:
    return tuple(f"{head}_f32_{form}" for form in ("nchw", "nhwc") for head in heads)


def _network(name: str, batch: int = 1) -> tuple[str, ...]:
    """A network's convolutions without what follows them."""
    layers = (p.without_epilogue().descriptor for p in problems(name, batch, memory_format="channels_last"))
    return tuple(dict.fromkeys(layers))


RESNET50, RESNET50_BATCH8, VGG16 = _network("resnet50"), _network("resnet50", batch=8), _network("vgg16")
RAW = tuple(replace(p, raw=True).descriptor for p in problems("resnet50", memory_format="contiguous"))
STEMS, POINTWISE = _channels_last(*_STEMS), _channels_last(*_POINTWISE)
DEPTHWISE, GROUPED = _channels_last(*_DEPTHWISE), _channels_last(*_GROUPED)
DILATED, ONE_BY_N = _channels_last(*_DILATED), _channels_last(*_ONE_BY_N)
FEW_CHANNELS, ODD = _channels_last(*_FEW_CHANNELS), _channels_last(*_ODD)
TINY = tuple(f"{name}_raw" for name in _both(*_TINY))
FUSED = tuple(name.format("f32_nhwc") for name in _FUSED)
POOLS, POOLS_NCHW = _channels_last(*_POOLS), tuple(f"{name}_f32_nchw" for name in _POOLS)
POOLS_BACKWARD = tuple(f"{name}_dgrad" for name in _both(*_POOLS[:-1]))
FLOAT64 = tuple(
    f"{head}_f64_nhwc" for head in (_STEMS[2], *(f"n1c{c}h{n}w{n}k{c}r3s3p1" for c, n in ((64, 56), (256, 14))),
                                    "n1c256h28w28k512r1s1", _DEPTHWISE[2], _GROUPED[2], _DILATED[0], _ODD[0])
)  # fmt: skip
# A few of every class, for what is not about peers.
MIXED = tuple(
    name
    for group in (
        RESNET50,
        VGG16,
        STEMS,
        POINTWISE,
        DEPTHWISE,
        GROUPED,
        DILATED,
        ONE_BY_N,
        FEW_CHANNELS,
        ODD,
        FUSED,
        TINY,
    )
    for name in group[::3]
)


def _gradients(direction: str) -> tuple[str, ...]:
    layers = problems("resnet50", batch=8, memory_format="channels_last")
    return tuple(p.without_epilogue(direction).descriptor for p in layers)


BACKWARD_INPUT, BACKWARD_WEIGHT = _gradients("backward_input"), _gradients("backward_weight")
