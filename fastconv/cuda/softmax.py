"""Softmax, its gradient and the cross-entropy on a GPU: a block of threads for each row of classes.

Sums are in float64, each thread's in order and then by halves, so they are the same in every run. Functions write where
they are told to, on the stream of their first array, and do not wait.
"""

from __future__ import annotations

import math
from functools import cache

from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.toolkit import cuda, device, float64, int64, pointer, types

THREADS = 128


def softmax(x: DeviceArray, out: DeviceArray, dim: int) -> None:
    """exp(x) / sum of exp(x) along axis `dim` (not negative); both contiguous, float32 or float64."""
    rows, inner = _rows(x.shape, dim)
    Launch(softmax_kernel(x.dtype), (rows,), (x.shape[dim], inner))((x, out), x.stream)


def softmax_backward(output: DeviceArray, grad_output: DeviceArray, out: DeviceArray, dim: int) -> None:
    """Gradient of the input of `softmax`, ``output * (grad - sum(grad * output))``; all contiguous and alike."""
    rows, inner = _rows(output.shape, dim)
    launch = Launch(softmax_backward_kernel(output.dtype), (rows,), (output.shape[dim], inner))
    launch((output, grad_output, out), output.stream)


def cross_entropy(
    output: DeviceArray, classes: DeviceArray, losses: DeviceArray, gradient: DeviceArray, smoothing: float
) -> None:
    """Loss of each row and its gradient with respect to the scores.

    Parameters
    ----------
    output, gradient : DeviceArray (N, K), contiguous
        Scores before any softmax; float32 or float64. `gradient` is written.
    classes : DeviceArray (N,) of integers
        A row whose class is not in [0, K) gets NaN: to look at them would be to wait for the GPU.
    losses : DeviceArray (N,)
        Written.
    smoothing : float
        Share of the target that is spread evenly over the classes.
    """
    rows, size = output.shape
    step = classes.strides[0] if rows > 1 else 1
    launch = Launch(cross_entropy_kernel(output.dtype, classes.dtype), (rows,), (size, step, float(smoothing)))
    launch((output, classes, losses, gradient), output.stream)


def _rows(shape: tuple[int, ...], dim: int) -> tuple[int, int]:
    """How many rows there are along an axis, and how far apart neighbours in one are."""
    inner = math.prod(shape[dim + 1 :])
    return math.prod(shape[:dim]) * inner, inner


@device
def _sum(value, shared):
    """The sum over all threads of a block."""
    thread, half = cuda.threadIdx.x, THREADS // 2
    shared[thread] = value
    while half >= 1:
        cuda.syncthreads()
        if thread < half:
            shared[thread] += shared[thread + half]
        half //= 2
    cuda.syncthreads()
    total = shared[0]
    cuda.syncthreads()  # before the next sum is written there
    return total


@device
def _largest(value, shared):
    """The maximum over all threads of a block."""
    thread, half = cuda.threadIdx.x, THREADS // 2
    shared[thread] = value
    while half >= 1:
        cuda.syncthreads()
        if thread < half and shared[thread + half] > shared[thread]:
            shared[thread] = shared[thread + half]
        half //= 2
    cuda.syncthreads()
    largest = shared[0]
    cuda.syncthreads()
    return largest


@device
def _largest_of_row(x, first, size, inner, shared):
    """The maximum of a row, whatever NaN there is: their differences from it are NaN all the same."""
    j = cuda.threadIdx.x
    largest = float64(-math.inf)
    while j < size:
        if x[first + j * inner] > largest:
            largest = float64(x[first + j * inner])
        j += THREADS
    return _largest(largest, shared)


@cache
def softmax_kernel(dtype: str) -> Kernel:
    """The kernel of `softmax`."""
    real = getattr(types, dtype)

    def softmax_rows(x, out, size, inner):
        shared = cuda.shared.array(THREADS, float64)
        row = cuda.blockIdx.x
        first = row // inner * size * inner + row % inner
        largest = real(_largest_of_row(x, first, size, inner, shared))
        total, j = float64(0), cuda.threadIdx.x
        while j < size:
            power = real(math.exp(x[first + j * inner] - largest))
            out[first + j * inner] = power
            total += power
            j += THREADS
        total = real(_sum(total, shared))
        j = cuda.threadIdx.x
        while j < size:
            out[first + j * inner] /= total
            j += THREADS

    array = pointer(real)
    return Kernel(softmax_rows, (array, array, int64, int64), (dtype,), threads=THREADS)


@cache
def softmax_backward_kernel(dtype: str) -> Kernel:
    """The kernel of `softmax_backward`."""
    real = getattr(types, dtype)

    def softmax_backward_rows(output, grad, out, size, inner):
        shared = cuda.shared.array(THREADS, float64)
        row = cuda.blockIdx.x
        first = row // inner * size * inner + row % inner
        total, j = float64(0), cuda.threadIdx.x
        while j < size:
            total += grad[first + j * inner] * output[first + j * inner]
            j += THREADS
        total = real(_sum(total, shared))
        j = cuda.threadIdx.x
        while j < size:
            out[first + j * inner] = output[first + j * inner] * (grad[first + j * inner] - total)
            j += THREADS

    array = pointer(real)
    return Kernel(softmax_backward_rows, (array, array, array, int64, int64), (dtype,), threads=THREADS)


@cache
def cross_entropy_kernel(dtype: str, integer: str) -> Kernel:
    """The kernel of `cross_entropy`, for classes of a dtype."""
    real = getattr(types, dtype)

    def cross_entropy_rows(output, classes, losses, gradient, size, step, smoothing):
        shared = cuda.shared.array(THREADS, float64)
        row, thread = cuda.blockIdx.x, cuda.threadIdx.x
        first, right = row * size, int64(classes[row * step])
        largest = real(_largest_of_row(output, first, size, 1, shared))
        total, scores, j = float64(0), float64(0), thread
        while j < size:
            shifted = output[first + j] - largest
            power = real(math.exp(shifted))
            gradient[first + j] = power
            total += power
            scores += shifted
            j += THREADS
        total = _sum(total, shared)
        scores = _sum(scores, shared)
        known = 0 <= right < size
        share = real(smoothing / size) if known else real(math.nan)
        j = thread
        while j < size:
            probability = gradient[first + j] / real(total) - share
            if j == right:
                probability -= real(1 - smoothing)
            gradient[first + j] = probability
            j += THREADS
        if thread == 0:
            loss = float64(math.nan)
            if known:
                loss = (smoothing - 1) * (output[first + right] - largest - math.log(total))
                if smoothing > 0:  # 0 * inf would be NaN
                    loss -= smoothing * (scores / size - math.log(total))
            losses[row] = real(loss)

    array = pointer(real)
    kinds = (array, pointer(getattr(types, integer)), array, array, int64, int64, float64)
    return Kernel(cross_entropy_rows, kinds, (dtype, integer), threads=THREADS)
