"""Plans: the same convolution again and again, with everything decided beforehand."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastconv import algorithms
from fastconv.arrays import allocator, as_dtype, as_floats, as_image, check_out, empty, on_gpu
from fastconv.descriptor import parse
from fastconv.dispatch import Choice, kernel_for
from fastconv.pooling import Pool
from fastconv.problem import ConvProblem, MemoryFormat
from fastconv.sizes import as_size, is_integer, shown
from fastconv.tuning import learn

_MOST_LAYOUTS = 64  # of inputs, remembered for each plan


@dataclass(frozen=True)
class Explanation:
    """Why a plan computes as it does; printing it gives a readable account.

    Attributes
    ----------
    descriptor, algorithm, params, source : str, str, dict, str
        The problem, what computes it and who chose that.
    threads, workspace_bytes : int
        Threads it may use and scratch memory of one call.
    predicted_ns : float
        The cost model's time on one thread, or on a GPU.
    expected_ns : float or None
        What the measurements of similar problems make of that, for `threads` threads, if there are any.
    measured_ns, gflops, peak_fraction : float or None
        The best time that tuning saw, if this problem has been tuned.
    tunable : bool
        Whether there is more than one candidate.
    busy : float or None
        Share of the threads' time that is work if all are equally fast, by counting jobs; None if nobody can count.
    layout_copies : str
        Which arrays are copied to another layout during a call.
    others : dict of str to str
        For each other algorithm, its predicted (or expected) time, the one that tuning saw, if it did, or why
        it cannot compute this problem.
    """

    descriptor: str
    algorithm: str
    params: dict[str, int]
    source: str
    threads: int
    workspace_bytes: int
    predicted_ns: float
    expected_ns: float | None
    measured_ns: float | None
    gflops: float | None
    peak_fraction: float | None
    tunable: bool
    busy: float | None
    layout_copies: str
    others: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The same facts as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        params = " ".join(f"{k}={v}" for k, v in self.params.items())
        lines = [
            self.descriptor,
            f"  algorithm     {self.algorithm} {params}".rstrip(),
            f"  chosen by     {self.source}",
            f"  threads       {self.threads}" + (f", busy {self.busy:.0%} of the time" if self.busy else ""),
            f"  workspace     {self.workspace_bytes / 1024:.1f} KiB",
            f"  predicted     {_forecast(self.predicted_ns, self.expected_ns, parse(self.descriptor).device)}",
            f"  measured      {self._measured()}",
            f"  layout copies {self.layout_copies}",
        ]
        return "\n".join(lines + [f"  not chosen    {name}: {why}" for name, why in self.others.items()])

    def _measured(self) -> str:
        if self.measured_ns is None:
            return "not yet: run `fastconv tune` on this descriptor" if self.tunable else "no: there is nothing to tune"
        share = f", {self.peak_fraction:.0%} of the FMA peak" if self.peak_fraction else ""
        return f"{self.measured_ns / 1e3:.1f} us, {self.gflops:.0f} GFLOP/s{share}"


def explain(problem: Any, kernel: Any, choice: Choice) -> Explanation:
    """Say which candidate computes `problem`, and what was weighed."""
    others = {}
    for name in algorithms.names(problem.operation, problem.device):
        if name != choice.candidate.algorithm:
            reason = algorithms.unsupported(problem, name)
            others[name] = reason or _other(problem, name, choice)
    return Explanation(
        problem.descriptor, choice.candidate.algorithm, dict(choice.candidate.params), choice.source,
        choice.threads, kernel.workspace_bytes, choice.predicted_ns,
        learn.expected_ns(problem, choice.candidate, choice.predicted_ns, choice.threads),
        *_measured(problem, choice), len(algorithms.candidates(problem)) > 1,
        _busy(kernel, choice.threads), kernel.layout_copies, others,
    )  # fmt: skip


def _measured(problem: Any, choice: Choice) -> tuple[float | None, float | None, float | None]:
    """Nanoseconds, GFLOP/s and share of the FMA peak that tuning saw of what was chosen."""
    entry = choice.entry
    if entry is None:
        return None, None, None
    if choice.candidate == entry.candidate:
        return entry.best_ns, entry.gflops, entry.peak_fraction
    ns = min(m.ns for m in entry.current() if m.candidate == choice.candidate)
    share = None if entry.peak_fraction is None else entry.peak_fraction * entry.best_ns / ns
    return ns, problem.flops / ns, share


def _busy(kernel: Any, threads: int) -> float | None:
    from fastconv.cpu.work import efficiency, split_of_work  # knows every kernel, and is needed only here

    try:
        return efficiency(split_of_work(kernel), threads)
    except ValueError:
        return None


def _other(problem: Any, algorithm: str, choice: Choice) -> str:
    """What is known of the best candidate of an algorithm that was not chosen."""
    measured = [m for m in choice.entry.current() if m.candidate.algorithm == algorithm] if choice.entry else []
    if measured:
        fastest = min(measured, key=lambda m: m.ns)
        best, threads, seen = fastest.candidate, fastest.threads, f", measured {fastest.ns / 1e3:.1f} us"
    else:
        corrected = learn.correction(problem, choice.threads)
        best, threads, seen = algorithms.candidates(problem, algorithm, corrected)[0], choice.threads, ""
    predicted = algorithms.predicted_ns(problem, best)
    expected = learn.expected_ns(problem, best, predicted, threads)
    limit, needed = choice.max_workspace, algorithms.workspace_bytes(problem, best, threads)
    over = f", needs {needed} bytes, more than {limit}" if limit is not None and needed > limit else ""
    return f"predicted {_forecast(predicted, expected, problem.device)}{seen}{over} ({best})"


def _forecast(predicted_ns: float, expected_ns: float | None, device: str) -> str:
    where = " on one thread" if device == "cpu" else ""
    learned = "" if expected_ns is None else f", {expected_ns / 1e3:.1f} us by similar measurements"
    return f"{predicted_ns / 1e3:.1f} us{where}{learned}"


class Plan:
    """A convolution ready to run: made by `plan`, called with arrays, safe to share between threads.

    Attributes
    ----------
    problem : ConvProblem
    choice : Choice
        The algorithm and where it came from.
    """

    def __init__(
        self, problem: ConvProblem, weight: np.ndarray, bias: np.ndarray | None, algorithm: str | None,
        max_workspace: int | None = None,
    ) -> None:  # fmt: skip
        self.problem = problem
        self._kernel, self.choice = kernel_for(problem, algorithm, max_workspace=max_workspace)
        self._packed = self._kernel.pack(weight.copy(), None if bias is None else bias.copy())
        self._dtype = np.dtype(problem.dtype)
        self._in_shape, self._out_shape = problem.in_shape, problem.out_shape
        self._new = allocator(self._out_shape, self._dtype, problem.memory_format)
        self._runs: dict[tuple, Any] = {}  # by the strides of x and of the result
        self._bind(empty(self._in_shape, self._dtype, problem.memory_format), self._new())  # compiles the kernel

    def __repr__(self) -> str:
        return f"<fastconv.Plan {self.problem.descriptor}: {self.choice.candidate}>"

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of one call, in bytes."""
        return self._kernel.workspace_bytes

    def __call__(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Convolve one batch.

        Parameters
        ----------
        x : array (N, C, H, W) or (C, H, W)
            The plan's shape and dtype; any strides.
        out : array, optional
            Where to write; of the result's shape and dtype, not overlapping `x`.

        Returns
        -------
        array (N, K, Ho, Wo) or (K, Ho, Wo)
            In the plan's memory format, or `out`.

        Raises
        ------
        TypeError, ValueError
            If `x` or `out` does not fit the plan.
        """
        if type(x) is np.ndarray and x.shape == self._in_shape and x.dtype == self._dtype and x.flags.aligned:
            image, batched = x, True
        else:
            image, batched = self._checked(x)
        if out is None:
            result = self._new()
        elif batched and self._fits(out, image):
            result = out
        else:
            result = check_out(out, self._out_shape if batched else self._out_shape[1:], self._dtype, image)
            result = result if batched else result[None]
        run = self._runs.get((image.strides, result.strides)) or self._bind(image, result)
        run(image, self._packed, result)
        if out is None:
            return result if batched else result[0]
        return out

    def _fits(self, out: Any, image: np.ndarray) -> bool:
        """Whether a result can go to `out` for certain: it is like one that was checked, and away from `image`."""
        return (
            type(out) is np.ndarray
            and (image.strides, out.strides) in self._runs
            and out.shape == self._out_shape
            and out.dtype == self._dtype
            and out.flags.behaved
            and not np.may_share_memory(out, image)
        )

    def explain(self) -> Explanation:
        """Which algorithm runs, why, and what it costs."""
        return explain(self.problem, self._kernel, self.choice)

    def _bind(self, x: np.ndarray, out: np.ndarray) -> Any:
        if len(self._runs) >= _MOST_LAYOUTS:
            self._runs.clear()
        run = self._runs[x.strides, out.strides] = self._kernel.bound(x, out)
        return run

    def _checked(self, x: Any) -> tuple[np.ndarray, bool]:
        image, batched = as_image(x, "x")
        if image.shape != self._in_shape:
            raise ValueError(f"x must have the plan's shape {self._in_shape}, got {image.shape}")
        if image.dtype != self._dtype:
            raise TypeError(f"x must have the plan's dtype {self._dtype}, got {image.dtype}")
        return image, batched


def plan(
    x_shape: tuple[int, ...], weight: np.ndarray, bias: np.ndarray | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1, *, dtype: Any = None, memory_format: MemoryFormat = "contiguous",
    activation: str | None = None, pool: Pool | None = None, algorithm: str | None = None,
    max_workspace: int | None = None,
) -> Plan:  # fmt: skip
    """Prepare a convolution: algorithm chosen, kernel compiled, weights packed, workspace known.

    Parameters
    ----------
    x_shape : (N, C, H, W) or (C, H, W)
        Shape of the arrays that the plan will be called with.
    weight : array (K, C/groups, R, S)
        Copied into the plan; later changes to it have no effect. Where it is on a GPU, the plan takes arrays there.
    bias : array (K,), optional
    stride, padding, dilation, groups
        As in `fastconv.conv2d`.
    dtype : optional
        The weights' dtype if not given; nothing is converted, so it must agree with them.
    memory_format : {"contiguous", "channels_last"}, default "contiguous"
        Format of the result, and the one that inputs are expected in. Other strides work, at some cost.
    activation, pool, algorithm
        As in `fastconv.conv2d`.
    max_workspace : int, optional
        Most scratch memory that one call on arrays in the plan's memory format may take, in bytes
        (`Plan.workspace_bytes`): algorithms and parameters that need more are not considered, even if they were
        measured to be faster.

    Returns
    -------
    Plan
        For weights on a GPU a `fastconv.functional.gpu.plan.DevicePlan`, which has the same methods.

    Raises
    ------
    TypeError, ValueError
        Name the argument that is wrong, its value and what would do; if nothing fits in `max_workspace`, the
        least that would.
    """
    if not isinstance(memory_format, str) or memory_format not in ("contiguous", "channels_last"):
        raise ValueError(f"memory_format must be 'contiguous' or 'channels_last', got {shown(memory_format)}")
    if max_workspace is not None and (not is_integer(max_workspace) or max_workspace < 0):
        raise ValueError(f"max_workspace must be None or a number of bytes, not negative, got {shown(max_workspace)}")
    shape = as_size(x_shape, "x_shape", (3, 4))
    shape = shape if len(shape) == 4 else (1, *shape)
    if on_gpu(weight):
        from fastconv.functional.gpu.plan import plan as plan_there  # imports Numba's CUDA target

        options = (stride, padding, dilation, groups, activation, pool)
        return plan_there(shape, weight, bias, options, dtype, memory_format, algorithm, max_workspace)
    weight = as_floats(weight, "weight", (4,))
    check_dtype(dtype, str(weight.dtype))
    problem = ConvProblem.create(
        shape, weight.shape, stride=stride, padding=padding, dilation=dilation, groups=groups,
        dtype=str(weight.dtype), memory_format=memory_format, bias=bias is not None, activation=activation, pool=pool,
    )  # fmt: skip
    return Plan(problem, weight, check_bias(bias, weight), algorithm, max_workspace)


def check_dtype(dtype: Any, found: str) -> None:
    """Raise TypeError unless `dtype`, of NumPy or PyTorch or a name, is None or that of weights, by name."""
    if dtype is None:
        return
    text = (dtype if isinstance(dtype, str) else shown(dtype)).removeprefix("torch.")
    name = text if text == "bfloat16" or text.startswith("float") else str(as_dtype(dtype))
    if name != found:
        raise TypeError(f"dtype must agree with the weights' {found}, got {shown(name)}")


def check_bias(bias: Any, weight: np.ndarray) -> np.ndarray | None:
    """`bias` as an array that fits `weight`, or None.

    Raises
    ------
    TypeError, ValueError
        If its dtype differs from the weights' or its shape is not (K,).
    """
    if bias is None:
        return None
    bias = as_floats(bias, "bias", (1,))
    if bias.dtype != weight.dtype:
        raise TypeError(f"bias must have the weights' dtype {weight.dtype}, got {bias.dtype}")
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape {weight.shape[:1]}, one for each filter, got {bias.shape}")
    return bias
