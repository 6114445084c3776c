"""Pooling and its gradients for arrays on a GPU."""

from __future__ import annotations

from typing import Any

from fastconv.arrays import dense_strides
from fastconv.cuda.arrays import DeviceArray, as_device_array
from fastconv.functional.calls import CallCache
from fastconv.functional.gpu.arrays import (
    as_image,
    check_fit,
    check_place,
    format_of,
    new,
    prepared,
    target,
    with_axes,
)
from fastconv.pooling import Pool
from fastconv.problem import MemoryFormat, PoolProblem

_calls = CallCache()


def pool(x: Any, window: tuple, return_indices: bool, algorithm: str | None, out: Any) -> Any:
    """The functions of `fastconv.functional.pool`; `window` are the arguments of a `Pool`."""
    image, missing = as_image(x, "x")

    def describe() -> PoolProblem:
        pool = Pool(*window)
        problem = _problem(image.shape, pool, image.dtype, format_of(image), return_indices=return_indices)
        _ = problem.out_size  # raises where the window does not fit
        return problem

    key = ("forward", image.shape, image.strides, image.dtype, window, return_indices)
    kernel, problem = prepared(_calls, key, describe, algorithm)
    strides = dense_strides(problem.out_shape, problem.memory_format)
    values = target(out, problem.out_shape, strides, missing, x, (image,))
    if not return_indices:
        kernel.run(image, values.array)
        return values.finished()
    indices = new(problem.out_shape, strides, missing, "int64", x)
    kernel.run(image, values.array, indices.array)
    return values.finished(), indices.finished()


def max_pool2d_input(
    grad_output: Any, indices: Any, input_size: tuple[int, ...], window: tuple | None, algorithm: str | None, out: Any
) -> Any:
    """`fastconv.grad.max_pool2d`."""
    found = as_device_array(indices, "indices", dtypes=("int64",))
    return _gradient(grad_output, input_size, window, {"indices": found}, algorithm, out)


def avg_pool2d_input(
    grad_output: Any, input_size: tuple[int, ...], window: tuple, algorithm: str | None, out: Any
) -> Any:
    """`fastconv.grad.avg_pool2d`."""
    return _gradient(grad_output, input_size, window, {}, algorithm, out)


def lp_pool2d_input(grad_output: Any, input: Any, output: Any, window: tuple, algorithm: str | None, out: Any) -> Any:
    """`fastconv.grad.lp_pool2d`."""
    y, x = as_device_array(output, "output", (3, 4)), as_device_array(input, "input", (3, 4))
    return _gradient(grad_output, x.shape, window, {"output": y, "input": x}, algorithm, out)


def _gradient(
    grad_output: Any, input_size: tuple[int, ...], window: tuple | None, saved: dict[str, DeviceArray],
    algorithm: str | None, out: Any,
) -> Any:  # fmt: skip
    grad, missing = as_image(grad_output, "grad_output")
    for name, array in saved.items():
        shape = grad.shape[len(missing) :]
        if name != "input" and array.shape != shape:
            raise ValueError(f"{name} must have the shape of grad_output, {shape}, got {array.shape}")
        if name != "indices":
            check_fit(grad, "grad_output", **{name: array})
        check_place(grad, "grad_output", **{name: array})
    if len(input_size) + len(missing) != 4:
        name = "input" if "input" in saved else "input_size"
        raise ValueError(f"{name} must have as many axes as grad_output, got {input_size}")
    shape = (1,) * len(missing) + input_size

    def describe() -> PoolProblem:
        pool = _whole_plane(shape, grad.shape) if window is None else Pool(*window)
        problem = _problem(shape, pool, grad.dtype, format_of(grad), direction="backward_input")
        if grad.shape != problem.out_shape:
            raise ValueError(
                f"grad_output must have shape {problem.out_shape} for input_size {shape}, got {grad.shape}"
            )
        return problem

    key = ("gradient", grad.shape, grad.strides, grad.dtype, shape, window)
    kernel, problem = prepared(_calls, key, describe, algorithm)
    strides = dense_strides(problem.in_shape, problem.memory_format)
    result = target(out, problem.in_shape, strides, missing, grad_output, (grad, *saved.values()))
    kernel.run(grad, result.array, *(with_axes(array, missing) for array in saved.values()))
    return result.finished()


def _problem(shape: tuple[int, ...], pool: Pool, dtype: str, format: MemoryFormat, **rest: Any) -> PoolProblem:
    batch, channels, height, width = shape
    return PoolProblem(batch, channels, (height, width), pool, dtype, format, device="cuda", **rest)


def _whole_plane(shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Pool:
    """A maximum with such an output size, every window of which has all pixels: only the indices say where it was."""
    sizes = list(zip(shape[2:], out_shape[2:], strict=True))
    if any(windows > pixels + 1 for pixels, windows in sizes):
        raise ValueError(f"grad_output has more windows than input_size {shape} can have: {out_shape}")
    padding = tuple(windows - 1 for _, windows in sizes)
    return Pool("max", tuple(pixels + p for (pixels, _), p in zip(sizes, padding, strict=True)), 1, padding)
