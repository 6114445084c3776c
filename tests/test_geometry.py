"""The tables of lines: every pixel of every image once, read from the right place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastconv.arrays import dense_strides
from fastconv.cpu.geometry import Lines, Segment, input_lines, input_segments, lines, segments, tiles_and_steps
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem

TILE = 4
WORDS = [
    "n1c2h7w9k3r3s3p1", "n9c2h4w5k3r3s3p1", "n70c2h3w2k3r3s3p1", "n5c2h7w6k3r3s3p1u2", "n33c2h1w1k3r1s1",
    "n6c2h9w8k3r2s3p0.1.2.0d2", "n4c2h6w6k3r1s1",
]  # fmt: skip
problems = pytest.mark.parametrize("problem", [parse(f"{word}_f32_nhwc") for word in WORDS], ids=WORDS)


def pixels(found: Lines, images: int, x_image: int, out_image: int) -> list[tuple[int, int, int]]:
    """(offset into x, offset into out, number of taps) of every pixel."""
    seen = []
    for number, (x, out, count, x_step, out_step, _, taps, _) in enumerate(found.lines.tolist()):
        for n in range(images) if number < found.of_image else [0]:
            seen += [(n * x_image + x + i * x_step, n * out_image + out + i * out_step, taps) for i in range(count)]
    return seen


def strides(problem: ConvProblem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return dense_strides(problem.in_shape, "channels_last"), dense_strides(problem.out_shape, "channels_last")


def offsets(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    """Of the first channel of every pixel, in order."""
    n, _, h, w = np.ogrid[tuple(map(slice, (shape[0], 1, *shape[2:])))]
    return sorted((n * strides[0] + h * strides[2] + w * strides[3]).ravel().tolist())


@problems
@pytest.mark.parametrize("together", [False, True])
def test_lines_cover_every_output_once(problem: ConvProblem, together: bool) -> None:
    x, out = strides(problem)
    found = lines(problem, x, out, 16, TILE, False, problem.batch if together else 1)
    seen = pixels(found, problem.batch, x[0], out[0])
    assert sorted(where for _, where, _ in seen) == offsets(problem.out_shape, out)
    top, left = problem.padding[0][0], problem.padding[1][0]
    for source, where, _ in seen:
        n, i, j = where // out[0], where % out[0] // out[2], where % out[2] // out[3]
        expected = n * x[0] + (i * problem.stride[0] - top) * x[2] + (j * problem.stride[1] - left) * x[3]
        assert source == expected


@problems
def test_input_lines_cover_every_input_once(problem: ConvProblem) -> None:
    x, out = strides(problem)
    found = input_lines(problem, out, x, 16, TILE, problem.batch)
    seen = pixels(found, problem.batch, out[0], x[0])
    assert sorted(where for _, where, _ in seen) == offsets(problem.in_shape, x)
    taps = problem.batch * np.prod(problem.conv_size) * np.prod(problem.kernel_size)
    assert sum(n for _, _, n in seen) <= taps


def test_lines_run_across_images_where_that_fills_tiles() -> None:
    problem = parse("n70c2h3w2k3r3s3p1_f32_nhwc")
    found = lines(problem, *strides(problem), 16, TILE, False, problem.batch)
    assert found.of_image == 0
    assert {int(count) for count in found.lines[:, 2]} == {8 * TILE, 70 % (8 * TILE)}
    assert tiles_and_steps(problem, TILE)[0] == 6 * -(-70 // TILE)
    single = replace(problem, batch=1)
    found = lines(single, *strides(single), 16, TILE, False, 1)
    assert found.of_image == len(found.lines)


def test_a_large_map_has_a_short_table() -> None:
    problem = parse("n8c3h1080w1920k64r3s3p1_f32_nhwc")
    found = lines(problem, *strides(problem), 64, TILE, False, problem.batch)
    assert len(found.lines) < 1.1 * 1080 * 1920 / (8 * TILE)


def test_segments_are_runs_of_positions_that_see_the_same_taps():
    rng = np.random.default_rng(0)
    for _ in range(500):
        size, out, kernel, stride, padding, dilation = (int(rng.integers(1, most)) for most in (12, 30, 6, 5, 9, 5))
        seen = [[tap for tap in range(kernel) if 0 <= o * stride - padding + tap * dilation < size] for o in range(out)]
        found = segments(size, out, kernel, stride, (padding, 0), dilation)
        assert [o for run in found for o in range(run.start, run.stop)] == list(range(out))
        for run in found:
            assert all(seen[o] == list(range(run.first, run.last)) for o in range(run.start, run.stop))


def test_segments_of_padding_without_end_take_no_time():
    found = segments(3, 2**40, 2, 1, (2**39, 0), 1)
    assert [len(run) for run in found if run.first < run.last] == [1, 2, 1]
    assert found[-1] == Segment(2**39 + 3, 2**40, 0, 0)


def test_input_segments_are_runs_of_positions_that_the_same_taps_read():
    rng = np.random.default_rng(0)
    for _ in range(500):
        size, out, kernel, stride, padding, dilation = (int(rng.integers(1, most)) for most in (20, 14, 6, 5, 9, 5))
        reads = {position: [] for position in range(size)}
        for tap in range(kernel):
            for o in range(out):
                reads.get(o * stride - padding + tap * dilation, []).append((tap, o))
        found = input_segments(size, out, kernel, stride, (padding, 0), dilation)
        places = [(run, n) for run in found for n in range(run.count)]
        assert sorted(run.start + n * run.step for run, n in places) == list(range(size))
        for run, n in places:
            assert reads[run.start + n * run.step] == [(tap, o + n) for tap, o in run.pairs]


def test_input_segments_of_a_long_row_take_no_time():
    assert [run.count for run in input_segments(2**40, 2**40, 3, 1, (1, 1), 1)] == [1, 2**40 - 2, 1]
