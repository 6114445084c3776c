"""Gradients, as functions of arrays; `fastconv.nn` calls them layer by layer."""

from fastconv.grad.conv import conv2d_input, conv2d_weight

__all__ = ["conv2d_input", "conv2d_weight"]
