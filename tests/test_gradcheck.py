"""gradcheck finds wrong gradients, and leaves no trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import nn
from fastconv.gradcheck import GradcheckError

X = np.random.default_rng(0).standard_normal((2, 3, 4, 5))


class Broken(nn.Conv2d):
    """A convolution with one wrong element in one gradient."""

    def __init__(self, wrong: str, by: float) -> None:
        super().__init__(3, 2, 3, padding=1, dtype="float64")
        self.wrong, self.by = wrong, by

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        grad = super().backward(grad_output, input_grad=input_grad)
        gradients = {"input": grad, "weight": self.weight.grad, "bias": self.bias.grad}
        gradients[self.wrong].flat[4 if self.wrong != "bias" else 1] += self.by
        return grad


@pytest.mark.parametrize(("wrong", "index"), [("input", (0, 0, 0, 4)), ("weight", (0, 0, 1, 1)), ("bias", (1,))])
@pytest.mark.parametrize("by", [0.5, np.nan, -np.inf])
def test_finds_the_wrong_element(wrong: str, index: tuple[int, ...], by: float) -> None:
    with pytest.raises(GradcheckError) as caught:
        fastconv.gradcheck(Broken(wrong, by), X)
    assert isinstance(caught.value, AssertionError)
    lines = str(caught.value).splitlines()
    assert lines[0] == "gradients of Broken: WRONG"
    (line,) = [line for line in lines[1:] if "WRONG" in line]
    assert f"WRONG {wrong}: worst at {index}:" in line
    assert sum(" ok " in line for line in lines) == 2


def test_reports_what_it_found() -> None:
    result = fastconv.gradcheck(Broken("weight", 1e-9), X)
    assert result.passed
    assert [c.name for c in result.comparisons] == ["input", "weight", "bias"]
    for comparison in result.comparisons:
        assert comparison.passed and 0 <= comparison.error < 1
        assert comparison.analytic == pytest.approx(comparison.numeric, rel=1e-5)
    assert str(result).startswith("gradients of Broken: ok\n  ok    input: worst at (")


def test_tolerances() -> None:
    layer = Broken("bias", 0.01)
    fastconv.gradcheck(layer, X, atol=0.02)
    fastconv.gradcheck(layer, X, atol=1e-4, rtol=0.5)
    with pytest.raises(GradcheckError):
        fastconv.gradcheck(layer, X, atol=0.005, rtol=0)


def test_leaves_the_layer_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3, dtype="float64"), nn.BatchNorm2d(2, dtype="float64"), nn.ReLU())
    net[0].weight.grad = np.full((2, 3, 3, 3), 5.0)
    before, x = net.state_dict(), X.copy()
    fastconv.gradcheck(net, x)
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    np.testing.assert_array_equal(x, X)
    assert (net[0].weight.grad == 5).all() and net[0].bias.grad is None
    with pytest.raises(RuntimeError):
        net.backward(x)


def test_frozen_parameters_are_left_out() -> None:
    layer = Broken("input", 0.0)
    layer.weight.requires_grad = False
    result = fastconv.gradcheck(nn.Sequential(nn.Sequential(), nn.Conv2d(3, 2, 1, dtype="float64").freeze()), X)
    assert [c.name for c in result.comparisons] == ["input"]


def test_functions() -> None:
    def forward(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return fastconv.conv2d(x, weight, stride=2)

    def backward(grad: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple:
        return (
            fastconv.grad.conv2d_input(x.shape, weight, grad, 2),
            factor * fastconv.grad.conv2d_weight(x, weight.shape, grad, 2),
        )

    weight, factor = np.random.default_rng(1).standard_normal((2, 3, 3, 2)), 1.0
    result = fastconv.gradcheck((forward, backward), (X, weight))
    assert [c.name for c in result.comparisons] == ["input 0", "input 1"]
    factor = 1.01
    with pytest.raises(GradcheckError, match="WRONG input 1"):
        fastconv.gradcheck((forward, backward), (X, weight))


def test_functions_of_one_input_that_return_numbers() -> None:
    fastconv.gradcheck((lambda x: float((x**2).sum()), lambda grad, x: 2 * grad * x), X)
    fastconv.gradcheck((lambda x, y: x * y, lambda grad, x, y: (grad * y, None)), (X, X + 1))
    with pytest.raises(ValueError, match=r"the gradient of input 0 must have shape \(2, 3, 4, 5\), got \(\)"):
        fastconv.gradcheck((lambda x: x.sum(), lambda grad, x: grad), X)


@pytest.mark.parametrize("x", [X.astype(np.float32), np.arange(4)])
def test_needs_float64(x: Any) -> None:
    with pytest.raises(TypeError, match="inputs must be float64"):
        fastconv.gradcheck(nn.ReLU(), x)
