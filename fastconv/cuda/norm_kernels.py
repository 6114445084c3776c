"""Kernels of `fastconv.cuda.norm`.

Sums are in two stages: a block leaves sums of its piece of some channels, and a block for some channels merges their
pieces. `_sum_of_threads` stands in this module because the simulator replaces `cuda` in one module at a time.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from fastconv.cuda.channels import (
    THREADS,
    Pieces,
    next_place,
    piece_of_thread,
    pixels_of_piece,
    place,
)
from fastconv.cuda.elements import at
from fastconv.cuda.geometry import Steps
from fastconv.cuda.kernel import Kernel
from fastconv.cuda.toolkit import cuda, device, float64, int64, numbers, pointer, types


class Given(NamedTuple):
    """Whether there is a vector, 0 or 1."""

    mean: int
    weight: int
    bias: int


@device
def _sum_of_threads(value, shared, lanes):
    """The sum over all threads with the same lane, by halves; all threads of a block must call it, and all get it."""
    thread, half = cuda.threadIdx.x, THREADS // 2
    shared[thread] = value
    while half >= lanes:
        cuda.syncthreads()
        if thread < half:
            shared[thread] += shared[thread + half]
        half //= 2
    cuda.syncthreads()
    total = shared[thread % lanes]
    cuda.syncthreads()  # before the next sum is written there
    return total


@device
def _per_deviation(var, eps):
    """One over the standard deviation."""
    return 1 / math.sqrt(float64(var) + eps)


@cache
def piece_moments_kernel(dtype: str) -> Kernel:
    """Of each piece of a channel: its mean, and the sum of squared distances from it, both float64 (piece, channel)."""

    def piece_moments(x, means, squares, g, s):
        shared = cuda.shared.array(THREADS, float64)
        c, piece, first, last = piece_of_thread(cuda.threadIdx.x, cuda.blockIdx.x, g)
        total = float64(0)
        pixel, (n, i, j) = first, place(first, g)
        while pixel < last:
            total += x[at(s, n, c, i, j)]
            pixel += g.rows
            n, i, j = next_place(n, i, j, g)
        mean = _sum_of_threads(total, shared, g.lanes) / pixels_of_piece(piece, g)
        total = float64(0)
        pixel, (n, i, j) = first, place(first, g)
        while pixel < last:
            distance = x[at(s, n, c, i, j)] - mean
            total += distance * distance
            pixel += g.rows
            n, i, j = next_place(n, i, j, g)
        total = _sum_of_threads(total, shared, g.lanes)
        if cuda.threadIdx.x < g.lanes and c < g.channels:
            means[piece * g.channels + c] = mean
            squares[piece * g.channels + c] = total

    partial = pointer(float64)
    kinds = (pointer(getattr(types, dtype)), partial, partial, numbers(int64, Pieces), numbers(int64, Steps))
    return Kernel(piece_moments, kinds, (dtype,), threads=THREADS)


@cache
def merge_moments_kernel(dtype: str) -> Kernel:
    """Mean and biased variance of each channel, of a dtype, from the moments of its pieces."""
    real = getattr(types, dtype)

    def merge_moments(means, squares, mean, var, g):
        shared = cuda.shared.array(THREADS, float64)
        c, first = cuda.blockIdx.x * g.lanes + cuda.threadIdx.x % g.lanes, cuda.threadIdx.x // g.lanes
        last = g.per_tile if c < g.channels else 0
        total = float64(0)
        piece = first
        while piece < last:
            total += means[piece * g.channels + c] * pixels_of_piece(piece, g)
            piece += g.rows
        center = _sum_of_threads(total, shared, g.lanes) / g.pixels
        total = float64(0)
        piece = first
        while piece < last:
            distance = means[piece * g.channels + c] - center
            total += squares[piece * g.channels + c] + distance * distance * pixels_of_piece(piece, g)
            piece += g.rows
        total = _sum_of_threads(total, shared, g.lanes)
        if cuda.threadIdx.x < g.lanes and c < g.channels:
            mean[c] = real(center)
            var[c] = real(total / g.pixels)

    partial, vector = pointer(float64), pointer(real)
    kinds = (partial, partial, vector, vector, numbers(int64, Pieces))
    return Kernel(merge_moments, kinds, (dtype,), threads=THREADS)


@cache
def update_running_kernel(dtype: str, statistics: str) -> Kernel:
    """Running averages of a dtype, moved towards statistics of another one; a thread for each channel."""
    real = getattr(types, dtype)

    def update_running_averages(running_mean, running_var, mean, var, channels, share, unbiased):
        c = cuda.grid(1)
        if c < channels:
            running_mean[c] = real((1 - share) * float64(running_mean[c]) + share * float64(mean[c]))
            running_var[c] = real((1 - share) * float64(running_var[c]) + share * unbiased * float64(var[c]))

    running, new = pointer(real), pointer(getattr(types, statistics))
    kinds = (running, running, new, new, int64, float64, float64)
    return Kernel(update_running_averages, kinds, (dtype, statistics), threads=THREADS)


@cache
def fold_kernel(dtype: str) -> Kernel:
    """Weights and biases that do a normalisation too; a thread for each weight."""
    real = getattr(types, dtype)

    def fold_weights(weight, bias, mean, var, scale, shift, out_weight, out_bias, size, filters, biased, given, eps):
        i, step = cuda.grid(1), cuda.gridsize(1)
        while i < filters * size:
            k = i // size
            factor = _per_deviation(var[k], eps)
            if given.weight:
                factor *= scale[k]
            out_weight[i] = real(weight[i] * factor)
            if i % size == 0:
                offset = -float64(mean[k])
                if biased:
                    offset += bias[k]
                offset *= factor
                if given.bias:
                    offset += shift[k]
                out_bias[k] = real(offset)
            i += step

    array = pointer(real)
    kinds = (*[array] * 8, int64, int64, int64, numbers(int64, Given), float64)
    return Kernel(fold_weights, kinds, (dtype,), threads=THREADS)


@cache
def normalize_kernel(dtype: str, statistics: str) -> Kernel:
    """``(x - mean) / sqrt(var + eps) * weight + bias``, as far as they are `Given`; `statistics` is mean's dtype."""
    real = getattr(types, dtype)

    def normalize_pixels(x, mean, var, weight, bias, out, g, s, o, given, eps):
        c, _, pixel, last = piece_of_thread(cuda.threadIdx.x, cuda.blockIdx.x, g)
        if pixel < last:
            center, shift, scale = real(0), real(0), _per_deviation(var[c], eps)
            if given.mean:
                center = real(mean[c])
            if given.weight:
                scale *= weight[c]
            if given.bias:
                shift = bias[c]
            factor = real(scale)
            n, i, j = place(pixel, g)
            while pixel < last:
                out[at(o, n, c, i, j)] = (x[at(s, n, c, i, j)] - center) * factor + shift
                pixel += g.rows
                n, i, j = next_place(n, i, j, g)

    array, vector, strides = pointer(real), pointer(getattr(types, statistics)), numbers(int64, Steps)
    kinds = (array, vector, vector, array, array, array, numbers(int64, Pieces), strides, strides)
    return Kernel(normalize_pixels, (*kinds, numbers(int64, Given), float64), (dtype, statistics), threads=THREADS)


@cache
def piece_products_kernel(dtype: str, statistics: str) -> Kernel:
    """Of each piece of a channel: the sums of gradients and of gradients times x - mean, float64 (piece, channel)."""

    def piece_products(x, grad, mean, totals, products, g, s, d):
        shared = cuda.shared.array(THREADS, float64)
        c, piece, pixel, last = piece_of_thread(cuda.threadIdx.x, cuda.blockIdx.x, g)
        total, product = float64(0), float64(0)
        if pixel < last:
            center = float64(mean[c])
            n, i, j = place(pixel, g)
            while pixel < last:
                gradient = grad[at(d, n, c, i, j)]
                total += gradient
                product += gradient * (x[at(s, n, c, i, j)] - center)
                pixel += g.rows
                n, i, j = next_place(n, i, j, g)
        total = _sum_of_threads(total, shared, g.lanes)
        product = _sum_of_threads(product, shared, g.lanes)
        if cuda.threadIdx.x < g.lanes and c < g.channels:
            totals[piece * g.channels + c] = total
            products[piece * g.channels + c] = product

    array, strides, partial = pointer(getattr(types, dtype)), numbers(int64, Steps), pointer(float64)
    vector = pointer(getattr(types, statistics))
    kinds = (array, array, vector, partial, partial, numbers(int64, Pieces), strides, strides)
    return Kernel(piece_products, kinds, (dtype, statistics), threads=THREADS)


@cache
def merge_products_kernel(statistics: str, dtype: str) -> Kernel:
    """Gradients of weight and bias, of a dtype, from the sums of the pieces and the variance."""
    real = getattr(types, dtype)

    def merge_products(totals, products, var, grad_weight, grad_bias, g, eps):
        shared = cuda.shared.array(THREADS, float64)
        c, piece = cuda.blockIdx.x * g.lanes + cuda.threadIdx.x % g.lanes, cuda.threadIdx.x // g.lanes
        last = g.per_tile if c < g.channels else 0
        total, product = float64(0), float64(0)
        while piece < last:
            total += totals[piece * g.channels + c]
            product += products[piece * g.channels + c]
            piece += g.rows
        total = _sum_of_threads(total, shared, g.lanes)
        product = _sum_of_threads(product, shared, g.lanes)
        if cuda.threadIdx.x < g.lanes and c < g.channels:
            grad_weight[c] = real(product * _per_deviation(var[c], eps))
            grad_bias[c] = real(total)

    partial, result = pointer(float64), pointer(real)
    kinds = (partial, partial, pointer(getattr(types, statistics)), result, result, numbers(int64, Pieces), float64)
    return Kernel(merge_products, kinds, (statistics, dtype), threads=THREADS)


@cache
def piece_sums_kernel(dtype: str) -> Kernel:
    """The sum of each piece of a channel, float64 (piece, channel)."""

    def piece_sums(x, totals, g, s):
        shared = cuda.shared.array(THREADS, float64)
        c, piece, pixel, last = piece_of_thread(cuda.threadIdx.x, cuda.blockIdx.x, g)
        total = float64(0)
        n, i, j = place(pixel, g)
        while pixel < last:
            total += x[at(s, n, c, i, j)]
            pixel += g.rows
            n, i, j = next_place(n, i, j, g)
        total = _sum_of_threads(total, shared, g.lanes)
        if cuda.threadIdx.x < g.lanes and c < g.channels:
            totals[piece * g.channels + c] = total

    kinds = (pointer(getattr(types, dtype)), pointer(float64), numbers(int64, Pieces), numbers(int64, Steps))
    return Kernel(piece_sums, kinds, (dtype,), threads=THREADS)


@cache
def merge_sums_kernel(dtype: str) -> Kernel:
    """The sum of each channel, of a dtype, from those of its pieces."""
    real = getattr(types, dtype)

    def merge_sums(totals, sums, g):
        shared = cuda.shared.array(THREADS, float64)
        c, piece = cuda.blockIdx.x * g.lanes + cuda.threadIdx.x % g.lanes, cuda.threadIdx.x // g.lanes
        total = float64(0)
        while piece < g.per_tile and c < g.channels:
            total += totals[piece * g.channels + c]
            piece += g.rows
        total = _sum_of_threads(total, shared, g.lanes)
        if cuda.threadIdx.x < g.lanes and c < g.channels:
            sums[c] = real(total)

    kinds = (pointer(float64), pointer(real), numbers(int64, Pieces))
    return Kernel(merge_sums, kinds, (dtype,), threads=THREADS)


@cache
def input_gradient_kernel(dtype: str, statistics: str, sums: str) -> Kernel:
    """The gradient of x, mean and variance depending on it, from the gradients of weight and bias, of dtype `sums`."""
    real = getattr(types, dtype)

    def input_gradient_pixels(x, grad, mean, var, weight, grad_weight, grad_bias, out, g, s, d, o, weighted, eps):
        c, _, pixel, last = piece_of_thread(cuda.threadIdx.x, cuda.blockIdx.x, g)
        if pixel < last:
            inverse = _per_deviation(var[c], eps)
            scale = inverse
            if weighted:
                scale *= weight[c]
            along, shift = real(-scale * inverse * grad_weight[c] / g.pixels), real(-scale * grad_bias[c] / g.pixels)
            center, factor = real(mean[c]), real(scale)
            n, i, j = place(pixel, g)
            while pixel < last:
                distance = x[at(s, n, c, i, j)] - center
                out[at(o, n, c, i, j)] = distance * along + (grad[at(d, n, c, i, j)] * factor + shift)
                pixel += g.rows
                n, i, j = next_place(n, i, j, g)

    array, vector, sum_ = pointer(real), pointer(getattr(types, statistics)), pointer(getattr(types, sums))
    strides = numbers(int64, Steps)
    kinds = (array, array, vector, vector, array, sum_, sum_, array, numbers(int64, Pieces), strides, strides, strides)
    return Kernel(input_gradient_pixels, (*kinds, int64, float64), (dtype, statistics, sums), threads=THREADS)
