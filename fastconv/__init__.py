"""fastconv: fast convolution and pooling from Numba-compiled kernels, chosen by an autotuner."""

from fastconv import grad, nn, optim
from fastconv._version import __version__
from fastconv.checkpoint import load, save
from fastconv.cpu.denormals import set_flush_denormal
from fastconv.cpu.threads import threads
from fastconv.descriptor import parse
from fastconv.dispatch import WisdomError, set_mode
from fastconv.functional.columns import col2im, im2col
from fastconv.functional.conv import conv1d, conv2d
from fastconv.functional.local import locally_connected2d
from fastconv.functional.pool import avg_pool2d, global_avg_pool2d, global_max_pool2d, lp_pool2d, max_pool2d
from fastconv.functional.transposed import conv_transpose2d
from fastconv.gradcheck import GradcheckError, gradcheck
from fastconv.images import from_images, random_crop, random_horizontal_flip
from fastconv.plan import Plan, plan
from fastconv.pooling import Pool
from fastconv.precision import set_float32_precision
from fastconv.problem import ConvProblem, PoolProblem
from fastconv.sizes import conv_output_size
from fastconv.summary import summary
from fastconv.tuning import tune

__all__ = [
    "ConvProblem",
    "GradcheckError",
    "Plan",
    "Pool",
    "PoolProblem",
    "WisdomError",
    "__version__",
    "avg_pool2d",
    "col2im",
    "conv1d",
    "conv2d",
    "conv_output_size",
    "conv_transpose2d",
    "from_images",
    "global_avg_pool2d",
    "global_max_pool2d",
    "grad",
    "gradcheck",
    "im2col",
    "load",
    "locally_connected2d",
    "lp_pool2d",
    "max_pool2d",
    "nn",
    "optim",
    "parse",
    "plan",
    "random_crop",
    "random_horizontal_flip",
    "save",
    "set_float32_precision",
    "set_flush_denormal",
    "set_mode",
    "summary",
    "threads",
    "tune",
]
