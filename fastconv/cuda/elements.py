"""Arithmetic that kernels share, on one element."""

from __future__ import annotations

from fastconv.cuda.toolkit import device, int32, uint32


@device
def activated(value, epilogue):
    """`fastconv.cuda.geometry.Epilogue`; NaN compares false, so it passes through."""
    if value < 0:
        value = value * epilogue.slope
    if value < epilogue.low:
        value = epilogue.low
    if value > epilogue.high:
        value = epilogue.high
    return value


@device
def activated4(values, epilogue):
    """`activated` of four values; where there is no activation, that costs one branch for all."""
    t0, t1, t2, t3 = values
    if epilogue.active:
        t0, t1 = activated(t0, epilogue), activated(t1, epilogue)
        t2, t3 = activated(t2, epilogue), activated(t3, epilogue)
    return t0, t1, t2, t3


@device
def divided(value, by):
    """Quotient and remainder of numbers that are not negative; 32 bits without a sign are what a GPU divides fast."""
    return int32(uint32(value) // uint32(by)), int32(uint32(value) % uint32(by))


@device
def at(steps, n, c, row, column):
    """Where an element is, from the `fastconv.cuda.geometry.Steps` of its array."""
    return n * steps.batch + c * steps.channel + row * steps.row + column * steps.column


@device
def output_at(distance, stride, outputs):
    """Along one axis: the output whose window begins so far on, or -1 if there is none."""
    i = distance // stride
    return i if distance % stride == 0 and 0 <= i < outputs else -1


@device
def first_tap(position, dilation):
    """The first tap that is not before the image, of taps at position, position + dilation, ..."""
    return 0 if position >= 0 else (dilation - 1 - position) // dilation


@device
def last_tap(position, dilation, size, taps):
    """One behind the last of `taps` taps that is not behind an image of a size."""
    inside = (size - position + dilation - 1) // dilation
    return max(0, min(taps, inside))


@device
def taps_inside(position, dilation, size, taps):
    """`first_tap` and `last_tap`, without a division where the dilation is 1: a GPU divides slowly."""
    if dilation == 1:
        return max(0, -position), max(0, min(taps, size - position))
    return first_tap(position, dilation), last_tap(position, dilation, size, taps)


@device
def place(index, channels, height, width, channels_last):
    """Image, channel, row and column of an element by its number: threads that follow each other write neighbours."""
    pixels = height * width
    if channels_last:
        c, pixel, n = index % channels, index // channels % pixels, index // channels // pixels
    else:
        pixel, c, n = index % pixels, index // pixels % channels, index // pixels // channels
    return n, c, pixel // width, pixel % width
