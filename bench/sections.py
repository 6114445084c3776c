"""What `versus.py` compares: problems, who runs them, and the aim that each section is held to."""

from __future__ import annotations

from dataclasses import dataclass

import layers

BEST = "best peer"  # the fastest of a section's rivals on each problem by itself
_TORCH = ("torch channels-last", "torch contiguous")
_ALL = (*_TORCH, "oneDNN prepacked", "onnxruntime", "openvino", "jax")


@dataclass(frozen=True)
class Section:
    """One comparison.

    Attributes
    ----------
    name, title : str
        As on the command line, and as a heading.
    problems : tuple of str
        Descriptors (`fastconv.problem`).
    ours : tuple of str
        Names in `peers.PEERS`; ratios are those of the first.
    rivals : tuple of str
        The same; a rival that cannot compute a problem is left out there. Where there are several, the
        ratios that count are to the fastest of them on each problem, `BEST`.
    mean, least : float
        What the ratios of medians (rival time over ours) must reach: their geometric mean, and each.
    mean_peak, least_peak : float
        The share of the measured FMA peak that 3x3 and 1x1 convolutions of 64 or more channels and filters must
        reach by best times: geometric mean, and each.
    largest_error : float
        Of a section that times nothing: our largest error over that of the first rival.
    """

    name: str
    title: str
    problems: tuple[str, ...]
    ours: tuple[str, ...] = ("fastconv plan",)
    rivals: tuple[str, ...] = _ALL
    mean: float = 0.0
    least: float = 0.0
    mean_peak: float = 0.0
    least_peak: float = 0.0
    largest_error: float = 0.0

    @property
    def timed(self) -> bool:
        """False for a section that looks at errors only."""
        return not self.largest_error

    @property
    def against(self) -> str:
        """Whose times the aim speaks of."""
        return BEST if self.timed and len(self.rivals) > 1 else self.rivals[0]

    @property
    def aim(self) -> str:
        """What is asked of the numbers, in words."""
        if self.largest_error:
            return f"No error above {self.largest_error} times that of {self.against}."
        words = f"{self.mean} times as fast as {self.against} by geometric mean, {self.least} on every layer"
        if self.least_peak:
            words += (
                f"; 3x3 and 1x1 with 64 channels or more at {self.mean_peak:.0%} of the FMA peak, none below "
                f"{self.least_peak:.0%}"
            )
        return words + "."


_PLAN = {"mean": 1.1, "least": 0.97, "mean_peak": 0.92, "least_peak": 0.85}
_GRADIENT = {"ours": ("fastconv gradient",), "rivals": _TORCH, "mean": 1.4, "least": 1.0}
_ODDITY = {"mean": 1.3, "least": 1.0}
_POOL = {"ours": ("fastconv pool",), "mean": 2.0, "least": 1.2}

SECTIONS = {
    section.name: section
    for section in [
        Section("resnet50", "ResNet-50, batch 1, plans", layers.RESNET50, **_PLAN),
        Section("resnet50-batch8", "ResNet-50, batch 8, plans", layers.RESNET50_BATCH8, **_PLAN),
        Section("vgg16", "VGG-16, batch 1, plans", layers.VGG16, **_PLAN),
        Section(
            "resnet50-nchw",
            "ResNet-50 through `fastconv.conv2d`: plain NCHW arrays, raw weights",
            layers.RAW,
            ("fastconv conv2d",),
            ("torch contiguous",),
            mean=1.8,
            least=1.1,
        ),
        Section("stems", "First layers", layers.STEMS, **_ODDITY),
        Section("pointwise", "1x1 of MobileNet and GoogLeNet", layers.POINTWISE, mean=1.1, least=0.97),
        Section("depthwise", "Depthwise 3x3 and 5x5", layers.DEPTHWISE, mean=2.5, least=1.5),
        Section("grouped", "Grouped", layers.GROUPED, mean=2.5, least=1.5),
        Section("dilated", "Dilated", layers.DILATED, **_ODDITY),
        Section("one-by-n", "1xN and Nx1", layers.ONE_BY_N, **_ODDITY),
        Section(
            "tiny",
            "Tiny: 8 to 32 channels and pixels, raw weights",
            layers.TINY,
            ("fastconv conv2d", "fastconv plan"),
            mean=4.0,
            least=2.0,
        ),
        Section("few-channels", "Few channels in or out", layers.FEW_CHANNELS, **_ODDITY),
        Section("odd", "Odd sizes everywhere", layers.ODD, **_ODDITY),
        Section("fused", "Convolution, ReLU and pooling in one pass", layers.FUSED, mean=1.3, least=1.1),
        Section("pool", "Pooling", layers.POOLS, rivals=(*_TORCH, "onnxruntime", "openvino", "jax"), **_POOL),
        Section(
            "pool-nchw",
            "Pooling of NCHW arrays",
            layers.POOLS_NCHW,
            rivals=("torch contiguous", "onnxruntime", "openvino", "jax"),
            **_POOL,
        ),
        Section("pool-backward", "Gradients of pooling", layers.POOLS_BACKWARD, rivals=(*_TORCH, "jax"), **_POOL),
        Section("backward-input", "Gradients of inputs, ResNet-50, batch 8", layers.BACKWARD_INPUT, **_GRADIENT),
        Section("backward-weight", "Gradients of weights, ResNet-50, batch 8", layers.BACKWARD_WEIGHT, **_GRADIENT),
        Section("float64", "float64", layers.FLOAT64, rivals=(*_TORCH, "jax"), **_ODDITY),
        Section(
            "untuned",
            "Plans before tuning, against tuned ones",
            layers.MIXED,
            ("fastconv plan, untuned",),
            ("fastconv plan",),
            mean=0.95,
            least=0.83,
        ),
        Section(
            "accuracy",
            "Largest errors against float64, ResNet-50",
            (*layers.RESNET50, *layers.RAW),
            ("fastconv conv2d", "fastconv plan"),
            ("torch contiguous", "oneDNN prepacked"),
            largest_error=1.5,
        ),
    ]
}
