"""Training as a whole: it learns, in part in eval mode too, and the same seed gives the same bits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support import FORMATS, as_format

import fastconv
from fastconv import nn, optim


def network() -> nn.Sequential:
    """One of every kind of layer that takes part in training; maps of more than one job each."""
    block = nn.Residual(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)), nn.Sequential())
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), block, nn.LeakyReLU(), nn.MaxPool2d(3, 2, 1), nn.Dropout(0.1),
        nn.ConvTranspose2d(8, 8, 2, 2, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3, groups=8), nn.LPPool2d(2, 2), nn.Flatten(), nn.Linear(8 * 6 * 5, 2),
    )  # fmt: skip


def train(steps: int, format: Any) -> tuple[list[float], str]:
    """Losses, and a hash of everything that training changes. Bright left halves are told from bright right ones."""
    nn.manual_seed(11)
    rng, net = np.random.default_rng(5), network()
    optimizer, loss = optim.Adam(net.parameters(), lr=0.01), nn.CrossEntropyLoss()
    losses = []
    for _ in range(steps):
        target = rng.integers(0, 2, 16)
        x = rng.standard_normal((16, 3, 28, 25)).astype(np.float32)
        x[target == 0, :, :, :12] += 0.5
        x[target == 1, :, :, 13:] += 0.5
        losses.append(loss(net(as_format(x, format)), target))
        net.backward(loss.backward(), input_grad=False)
        optimizer.step()
        optimizer.zero_grad()
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.tobytes())
    digest.update(net.eval()(as_format(x, format)).tobytes())
    return losses, digest.hexdigest()


@pytest.mark.parametrize("format", FORMATS)
def test_training_learns(format: Any) -> None:
    losses, _ = train(25, format)
    assert max(losses[-5:]) < 0.25 < 0.5 < losses[0], losses


def test_training_is_the_same_bit_for_bit_whatever_the_threads() -> None:
    code = "import test_nn_training as t; print(*[t.train(3, format)[1] for format in t.FORMATS])"
    found = set()
    for threads in (1, 2, 2):
        env = os.environ | {"NUMBA_NUM_THREADS": str(threads), "PYTHONPATH": os.path.dirname(__file__)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1, found
    (hashes,) = found
    assert len(set(hashes.split())) == 2, "the two formats sum in different orders, so the hash does see rounding"


# Kinds of layers in eval mode; a dropout always, so that what is compared is not random.
IN_EVAL = [
    ("Dropout",), ("Dropout", "BatchNorm2d"), ("Dropout", "Conv2d"), ("Dropout", "MaxPool2d"),
    ("Dropout", "BatchNorm2d", "Conv2d", "MaxPool2d"),
]  # fmt: skip
in_eval = pytest.mark.parametrize("in_eval", IN_EVAL, ids=lambda kinds: "-".join(kinds[1:]) or "Dropout")
frozen = pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])  # batch normalisation
residual = pytest.mark.parametrize("residual", [False, True], ids=["sequential", "residual"])


def below(module: Any) -> Iterator[Any]:
    """All modules below, of torch or not."""
    for _, child in module.named_children():
        yield child
        yield from below(child)


def fine_tuned(n: Any, total: Any, dtype: Any, in_eval: tuple, frozen: bool) -> Any:
    """A network of modules of `n` in training mode, kinds of them in eval mode; `total` adds a block and its input."""
    block = n.Sequential(
        n.Conv2d(3, 3, 3, padding=1, dtype=dtype), n.BatchNorm2d(3, dtype=dtype), n.ReLU(), n.Dropout(0.5),
        n.MaxPool2d(3, 1, 1),
    )  # fmt: skip
    block = total(block, n.Sequential()) if total else block
    net = n.Sequential(n.Conv2d(2, 3, 1, dtype=dtype), block, n.Conv2d(3, 2, (3, 2), stride=2, dtype=dtype))
    for module in below(net):
        kind = type(module).__name__
        module.train(kind not in in_eval)
        if kind == "BatchNorm2d":
            module.requires_grad_(not frozen)
    return net


def randomised(net: nn.Sequential) -> nn.Sequential:
    """The network with parameters and statistics that are nowhere 0 or 1."""
    rng = np.random.default_rng(0)
    for key, buffer in net.named_state():
        if "num" not in key:
            values = rng.uniform(0.5, 2, buffer.value.shape) if "var" in key else rng.normal(0, 0.7, buffer.value.shape)
            buffer.value = values.astype(buffer.value.dtype)
    return net


@in_eval
@frozen
@residual
@pytest.mark.parametrize("format", FORMATS)
def test_fine_tuning_like_torch(in_eval: tuple, frozen: bool, residual: bool, format: Any) -> None:
    torch = pytest.importorskip("torch")

    class Sum(torch.nn.Sequential):
        def forward(self, x: Any) -> Any:
            return sum(branch(x) for branch in self)

    net = randomised(fine_tuned(nn, nn.Residual if residual else None, "float32", in_eval, frozen))
    twin = fine_tuned(torch.nn, Sum if residual else None, torch.float32, in_eval, frozen)
    before = net.state_dict()
    twin.load_state_dict({key: torch.tensor(value) for key, value in before.items()})
    bound = {"rtol": 1e-4, "atol": 1e-4}
    for seed in range(2):  # gradients add up; running averages move twice, or stay
        x = as_format(np.random.default_rng(seed).standard_normal((2, 2, 7, 9)).astype(np.float32), format)
        x_torch = torch.tensor(x, requires_grad=True)
        expected, output = twin(x_torch), net(x)
        np.testing.assert_allclose(output, expected.detach().numpy(), **bound)
        grad = np.random.default_rng(seed + 2).standard_normal(output.shape).astype(np.float32)
        expected.backward(torch.tensor(grad))
        np.testing.assert_allclose(net.backward(grad), x_torch.grad.numpy(), **bound)
    for (key, parameter), twins in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert (parameter.grad is None) == (twins.grad is None), key
        if parameter.grad is not None:
            np.testing.assert_allclose(parameter.grad, twins.grad.numpy(), **bound, err_msg=key)
    for key, value in twin.state_dict().items():
        np.testing.assert_allclose(net.state_dict()[key], value.numpy(), **bound, err_msg=key)
        if "BatchNorm2d" in in_eval:
            np.testing.assert_array_equal(net.state_dict()[key], before[key], err_msg=key)


@in_eval
@frozen
@residual
def test_fine_tuning_against_finite_differences(in_eval: tuple, frozen: bool, residual: bool) -> None:
    net = randomised(fine_tuned(nn, nn.Residual if residual else None, "float64", in_eval, frozen))
    result = fastconv.gradcheck(net, np.random.default_rng(0).standard_normal((2, 2, 5, 6)), atol=1e-7, rtol=1e-5)
    assert len(result.comparisons) == 1 + (6 if frozen else 8)


@pytest.mark.parametrize("format", FORMATS)
def test_recording_computes_the_same_as_inference(format: Any) -> None:
    net = randomised(nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)))
    x = as_format(np.random.default_rng(1).standard_normal((2, 3, 11, 13)).astype(np.float32), format)
    folded = net.eval()(x)
    net.training = True  # and the layers in eval mode still
    result = net(x)
    np.testing.assert_allclose(result, folded, rtol=2e-5, atol=2e-5)
    assert net.backward(np.ones_like(result)) is not None


def test_training_with_constant_statistics_learns() -> None:
    """A new last layer and the weights of the normalisation, on top of what is frozen."""
    nn.manual_seed(1)
    norm = nn.BatchNorm2d(8).eval()
    features = nn.Sequential(nn.Conv2d(3, 8, 3).freeze(), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(features, nn.Linear(8, 2))
    rng, loss = np.random.default_rng(5), nn.CrossEntropyLoss()
    optimizer, before = optim.Adam(net.parameters(), lr=0.05), net.state_dict()
    target = rng.integers(0, 2, 16)
    x = (rng.standard_normal((16, 3, 9, 7)) + target[:, None, None, None]).astype(np.float32)
    losses = []
    for _ in range(25):
        losses.append(loss(net(x), target))
        net.backward(loss.backward(), input_grad=False)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.3 < 0.5 < losses[0], losses
    moved = {key for key, value in net.state_dict().items() if not np.array_equal(value, before[key])}
    assert moved == {"0.1.weight", "0.1.bias", "1.weight", "1.bias"}


class Probe(nn.Module):
    """The identity, which notes whether it records, and can fail."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.seen: list[bool] = []

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.seen.append(self.recording)
        if self.fails:
            raise ZeroDivisionError
        return x

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        return grad_output if input_grad else None


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_modules_in_eval_mode_record_while_a_network_in_training_runs(training: bool, fails: bool) -> None:
    probes = Probe(), Probe(), Probe(fails)
    deep = nn.Sequential(nn.Sequential(probes[1]), nn.ReLU())
    net = nn.Sequential(probes[0], nn.Residual(nn.Sequential(), deep, nn.Sequential(nn.ReLU(), probes[2])))
    net.eval()
    net.training = training
    x = np.ones((1, 2, 3), np.float32)
    for _ in range(2):
        if fails:
            with pytest.raises(ZeroDivisionError):
                net(x)
        else:
            net(x)
        assert not any(module.recording for module in below(net))
    assert [probe.seen for probe in probes] == 3 * [[training] * 2]
    probes[0](x)
    assert probes[0].seen[-1] is False


def test_a_container_in_training_inside_one_in_eval_mode() -> None:
    outside, inside = Probe(), Probe()
    inner = nn.Sequential(inside)
    net = nn.Sequential(outside, inner, outside).eval()
    inner.training = True
    net(np.ones((1, 2, 3), np.float32))
    assert (outside.seen, inside.seen) == ([False, False], [True])


def test_a_network_in_eval_mode_keeps_nothing() -> None:
    net, x = network(), np.ones((2, 3, 28, 25), np.float32)
    grad = np.ones_like(net(x))
    net.eval()(x)
    assert all(module._kept is None for module in (net, *below(net)))
    with pytest.raises(RuntimeError, match=r"Linear\.backward needs .* call train\(\) on the layer or the network"):
        net.backward(grad)
