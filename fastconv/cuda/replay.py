"""Calls made again: only the kernels that the first one started, on other arrays of the same layout.

What a call checks and decides depends on its options and on the layout of its arrays. The first call with them is
recorded: its arrays belong to a `Recording`, which makes all further arrays and hears of all launches. Where it is
clear which array each address of a launch is that of, calls like it only make such arrays and start the kernels on
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from operator import itemgetter
from typing import Any, TypeAlias

from fastconv.cuda.arrays import DeviceArray, Library, library_of

Start: TypeAlias = Callable[[Sequence[int], int], None]  # a kernel, on arrays at these addresses, on a stream
Layout: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], str]  # shape, strides and dtype
MaybeArray: TypeAlias = DeviceArray | None

_MOST = 256  # calls of a function or a plan that are remembered


class Recording(Library):
    """The library of a call's arrays, which remembers what it makes and which kernels are started.

    Parameters
    ----------
    like : array
        Whose library makes new arrays.
    inputs : DeviceArray or None
        What the caller gave.
    """

    def __init__(self, like: Any, *inputs: MaybeArray) -> None:
        library = library_of(like)
        assert library is not None
        self._library, self._like, self._inputs = library, like, inputs
        self._made: list[tuple[Any, Layout]] = []
        self._started: list[tuple[Start, list[int]]] = []

    def owns(self, x: Any) -> bool:
        return x is self

    def describe(self, x: Any) -> DeviceArray:
        return replace(self._library.describe(x), owner=self)

    def new(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, like: Any) -> Any:
        made = self._library.new(shape, strides, dtype, self._like)
        self._made.append((made, (shape, strides, dtype)))
        return made

    def written(self, x: Any) -> Any:
        return self._library.written(x)

    def inputs(self) -> list[MaybeArray]:
        """What kernels must get for the inputs: owned by the recording, which must not own them, or all live longer."""
        return [array and replace(array, owner=self) for array in self._inputs]

    def started(self, start: Start, addresses: list[int]) -> None:
        """Remember a launch."""
        self._started.append((start, addresses))

    def replay(self, answer: Any, out: DeviceArray, kept: Sequence[MaybeArray] = ()) -> Replay | None:
        """What makes the call again.

        Parameters
        ----------
        answer : array
            What the caller gets: an array that it gave, or one of the recording's.
        out : DeviceArray
            Where that lies.
        kept : sequence of DeviceArray or None
            Arrays that all calls read.

        Returns
        -------
        Replay or None
            None if an address is that of no array, or of two.
        """
        which = next((i for i, (made, _) in enumerate(self._made) if made is answer), None)
        given = [array for array in self._inputs if array is not None] + ([out] if which is None else [])
        sources = [array.pointer for array in given] + [self._library.address(made) for made, _ in self._made]
        fixed = [array.pointer for array in kept if array is not None] + [0]  # 0 stands for no array
        sources += fixed
        index = {address: i for i, address in enumerate(sources)}
        used = [address for _, addresses in self._started for address in addresses]
        if len(index) < len(sources) or not index.keys() >= set(used):
            return None
        starts = [(start, itemgetter(*(index[address] for address in at))) for start, at in self._started]
        sizes = [array.itemsize * array.reach for array in given]
        return Replay(self._library, [layout for _, layout in self._made], fixed, starts, which, sizes)


class Replay:
    """A call's new arrays and launches; `Recording.replay` makes it."""

    __slots__ = ("_answer", "_fixed", "_layouts", "_library", "_sizes", "_starts")

    def __init__(
        self, library: Library, layouts: list[Layout], fixed: list[int],
        starts: Sequence[tuple[Start, Callable[[Sequence[int]], tuple[int, ...]]]], answer: int | None,
        sizes: list[int],
    ) -> None:  # fmt: skip
        self._library, self._layouts, self._fixed, self._starts, self._answer = library, layouts, fixed, starts, answer
        self._sizes = sizes

    def __call__(self, addresses: list[int], stream: int, like: Any, out: Any) -> Any:
        """The result for arrays at `addresses`, a list of the call's own; None if `out` overlaps another.

        New arrays are made as the array `like` is.
        """
        if self._answer is None and self._overlap(addresses):
            return None
        library, made = self._library, []
        for shape, strides, dtype in self._layouts:
            made.append(library.new(shape, strides, dtype, like))
            addresses.append(library.address(made[-1]))
        addresses += self._fixed
        for start, chosen in self._starts:
            start(chosen(addresses), stream)
        return library.written(out if self._answer is None else made[self._answer])

    def _overlap(self, addresses: list[int]) -> bool:
        """Whether the last array shares bytes with one before it, as far as their ends tell."""
        out, end = addresses[-1], addresses[-1] + self._sizes[-1]
        return any(at < end and out < at + size for at, size in zip(addresses[:-1], self._sizes, strict=False))


class Replays:
    """The calls of a function, or of a plan, by their options and the layout of their arrays."""

    def __init__(self) -> None:
        self._known: dict[tuple, Replay] = {}

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def again(self, arrays: tuple, options: tuple = ()) -> Any:
        """The result of a call like one that is known, or None.

        Parameters
        ----------
        arrays : tuple of array or None
            Inputs, the first of which says what library makes the result, and where to write or None.
        options : tuple
            All that a call is told besides.
        """
        seen = _seen(arrays, options) if self._known else None
        if seen is None:
            return None
        key, addresses, stream = seen
        try:
            replay = self._known.get(key)
        except TypeError:  # a list among the options
            return None
        return None if replay is None else replay(addresses, stream, arrays[0], arrays[-1])

    def remember(self, arrays: tuple, options: tuple, replay: Replay | None) -> None:
        """Keep what `again` looks for."""
        seen = _seen(arrays, options)
        if seen is None or replay is None:
            return
        if len(self._known) >= _MOST:
            self._known.clear()
        with suppress(TypeError):
            self._known[seen[0]] = replay


def _seen(arrays: tuple, options: tuple) -> tuple[tuple, list[int], int] | None:
    """A call's key, its arrays' addresses, and their stream; None if they have no common one."""
    key, addresses, common = [type(arrays[0]), options], [], None
    for x in arrays:
        if x is None:
            key.append(None)
            continue
        library = library_of(x)
        sight = None if library is None else library.sight(x)
        if sight is None:
            return None
        layout, address, stream = sight
        if common is None:
            common = stream
        elif stream != common:
            return None
        key.append(layout)
        addresses.append(address)
    return None if common is None else (tuple(key), addresses, common)
