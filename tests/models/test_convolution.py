"""The weight's gradient on a CPU: which convolutions compute it their own way, and that it stays the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from models.build import build_model
from models.convolution import LARGE_MAP_BYTES, convolve
from models.loss import DetectionLoss
from models.recompute import recomputed
from utils.config import HypConfig, ModelConfig

OWN_BACKWARD = "_ConvolutionBackward"


def layer(
    channels: tuple[int, int], kernel: int, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(*channels, kernel, stride, kernel // 2, groups=groups, bias=bias)


def maps(*shape: int, layout: torch.memory_format = torch.channels_last) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=generator).contiguous(memory_format=layout).requires_grad_()


LARGE = (24, 128, 128)
"""The smallest square map of 24 channels that counts as large."""
OWN_WAY = {
    "3x3": (lambda: layer((6, 24), 3), (1, 6, 128, 128)),
    "batch": (lambda: layer((6, 24), 3), (3, 6, 130, 127)),
    "stride 2": (lambda: layer((8, 24), 3, stride=2), (1, 8, 256, 257)),
    "6x6 of YOLOv5 v6": (lambda: nn.Conv2d(3, 24, 6, 2, 2, bias=False), (1, 3, 256, 260)),
    "groups": (lambda: layer((8, 24), 3, groups=4), (1, 8, 128, 128)),
    "depth-wise 13x13": (lambda: layer((5, 5), 13, groups=5), (2, 5, 23, 40)),
    "depth-wise 9x9, smaller than the kernel": (lambda: layer((4, 4), 9, groups=4), (2, 4, 3, 1)),
}
PLAIN_WAY = {
    "small map": (lambda: layer((6, 24), 3), (4, 6, 100, 100)),
    "1x1": (lambda: layer((6, 24), 1), (1, 6, 128, 128)),
    "bias": (lambda: layer((6, 24), 3, bias=True), (1, 6, 128, 128)),
    "dilated": (lambda: nn.Conv2d(6, 24, 3, padding=2, dilation=2, bias=False), (1, 6, 128, 128)),
    "depth-wise 7x7": (lambda: layer((5, 5), 7, groups=5), (2, 5, 23, 40)),
    "depth-wise of stride 2": (lambda: layer((5, 5), 13, stride=2, groups=5), (2, 5, 23, 40)),
}


def test_the_limit_is_where_the_cases_put_it() -> None:
    channels, height, width = LARGE
    assert channels * height * width * 4 == LARGE_MAP_BYTES


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["last", "contiguous"])
@pytest.mark.parametrize(("build", "shape"), OWN_WAY.values(), ids=OWN_WAY)
def test_gradients_are_those_of_the_module(
    build: Callable[[], nn.Conv2d], shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    conv, x = build().to(memory_format=layout), maps(*shape, layout=layout)
    output = convolve(conv, x)
    assert output.grad_fn is not None and output.grad_fn.name() == OWN_BACKWARD
    assert torch.equal(output, conv(x))
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    got = torch.autograd.grad(output, (x, conv.weight), gradient)
    exact = conv.double()
    exact_x = x.detach().double().requires_grad_()
    wanted = torch.autograd.grad(exact(exact_x), (exact_x, exact.weight), gradient.double())
    for own, reference in zip(got, wanted, strict=True):
        assert own.shape == reference.shape
        assert (own - reference).abs().max() < 2e-5 * reference.abs().max()


@pytest.mark.parametrize(("build", "shape"), PLAIN_WAY.values(), ids=PLAIN_WAY)
def test_others_are_left_to_pytorch(build: Callable[[], nn.Conv2d], shape: tuple[int, ...]) -> None:
    output = convolve(build(), maps(*shape))
    assert output.grad_fn is not None and output.grad_fn.name() != OWN_BACKWARD


@pytest.mark.parametrize(
    ("prepare", "context"),
    [
        (lambda conv: conv.eval(), nullcontext()),
        (lambda conv: conv, torch.no_grad()),
        (lambda conv: conv.requires_grad_(False), nullcontext()),
        (lambda conv: conv, torch.autocast("cpu", torch.bfloat16)),
        (lambda conv: conv.bfloat16(), nullcontext()),
    ],
    ids=["evaluation", "no gradients", "frozen", "autocast", "16 bits"],
)
def test_only_float32_training(
    prepare: Callable[[nn.Conv2d], nn.Conv2d], context: AbstractContextManager[None]
) -> None:
    conv = prepare(layer((6, 24), 3))
    with context:
        output = convolve(conv, maps(1, 6, 128, 128).to(conv.weight.dtype))
    assert output.grad_fn is None or output.grad_fn.name() != OWN_BACKWARD


def test_compiled_training_keeps_pytorchs_graph() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    conv = layer((6, 24), 3)
    output = torch.compile(lambda x: convolve(conv, x), backend=backend, fullgraph=True)(maps(1, 6, 128, 128))
    assert len(graphs) == 1
    assert output.grad_fn is not None and output.grad_fn.name() != OWN_BACKWARD


def test_it_is_used_again_when_activations_are_computed_again() -> None:
    conv, x = Layer(layer((6, 24), 3)), maps(1, 6, 128, 128)
    wanted = torch.autograd.grad(conv(x).square().sum(), (x, conv.conv.weight))
    got = torch.autograd.grad(recomputed(conv, x).square().sum(), (x, conv.conv.weight))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


class Layer(nn.Module):
    """`convolve` as a module."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self.conv, x)


def test_a_detectors_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the whole network, seeker included, against PyTorch's way everywhere."""
    config = ModelConfig(depth=0.33, width=0.25, num_classes=2)
    calls: list[str] = []

    def gradients() -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = build_model(config).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = maps(1, 3, 512, 512).detach()
        targets = torch.tensor([[0, 1, 0.4, 0.4, 0.05, 0.05], [0, 0, 0.7, 0.2, 0.04, 0.06]])
        output = model(images)
        DetectionLoss(config, HypConfig())(output, targets, torch.zeros(1, 1, 64, 64))["total"].backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    own = gradients()

    def plain(conv: nn.Conv2d, x: Tensor) -> Tensor:
        calls.append("plain")
        return conv(x)  # type: ignore[no-any-return]

    monkeypatch.setattr("models.layers.convolve", plain)
    wanted = gradients()
    assert calls and own.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            own[name], gradient, rtol=2e-3, atol=2e-4 * float(gradient.abs().max()), msg=name
        )
