"""Gradients, as functions of arrays; `fastconv.nn` calls them layer by layer."""

from fastconv.grad.conv import conv2d_bias, conv2d_input, conv2d_weight
from fastconv.grad.local import locally_connected2d_input, locally_connected2d_weight
from fastconv.grad.pool import avg_pool2d, lp_pool2d, max_pool2d

__all__ = [
    "avg_pool2d",
    "conv2d_bias",
    "conv2d_input",
    "conv2d_weight",
    "locally_connected2d_input",
    "locally_connected2d_weight",
    "lp_pool2d",
    "max_pool2d",
]
