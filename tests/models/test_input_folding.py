"""Normalisation folded into a first convolution against normalising the images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.convert.input_folding import IMAGENET_MEAN, IMAGENET_STD, fold_before_batchnorm, fold_into_bias

MEAN, STD = (0.3, 0.55, 0.7), (0.2, 0.4, 0.15)


def normalised(images: torch.Tensor, *, bgr: bool) -> torch.Tensor:
    images = images[:, [2, 1, 0]] if bgr else images
    return torch.stack([(images[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_before_batchnorm(bgr: bool, training: bool) -> None:
    """Without padding the two networks agree everywhere, in both modes."""
    conv, bn = nn.Conv2d(3, 8, 5, 2, bias=False).double(), nn.BatchNorm2d(8).double().train(training)
    bn.running_mean = torch.randn(8).double()
    bn.running_var = torch.rand(8).double() + 0.5
    images = torch.rand(2, 3, 21, 17).double()
    old_mean = bn.running_mean.clone()
    expected = bn(conv(normalised(images, bgr=bgr)))
    weight, running_mean = fold_before_batchnorm(conv.weight, old_mean, MEAN, STD, bgr=bgr)
    conv.weight.copy_(weight)
    bn.running_mean = running_mean
    torch.testing.assert_close(bn(conv(images)), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_into_bias(bgr: bool, biased: bool) -> None:
    conv = nn.Conv2d(3, 8, 3, bias=biased).double()
    images = torch.rand(2, 3, 11, 12).double()
    expected = conv(normalised(images, bgr=bgr))
    weight, bias = fold_into_bias(conv.weight, conv.bias, MEAN, STD, bgr=bgr)
    torch.testing.assert_close(nn.functional.conv2d(images, weight, bias), expected, atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_padding_differs_only_where_the_kernel_leaves_the_image() -> None:
    conv = nn.Conv2d(3, 4, 7, 2, 3, bias=False)
    images = torch.rand(1, 3, 32, 32)
    expected = conv(normalised(images, bgr=False))
    weight, bias = fold_into_bias(conv.weight, None, MEAN, STD)
    found = nn.functional.conv2d(images, weight, bias, stride=2, padding=3)
    inside = (slice(None), slice(None), slice(2, -1), slice(2, -1))
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[..., 0, :], expected[..., 0, :], atol=1e-2)


@torch.no_grad()
def test_mean_colour_padding_makes_it_exact_everywhere() -> None:
    """The old network's zero padding is the mean colour here."""
    conv = nn.Conv2d(3, 4, 3, 1, 1, bias=False).double()
    images = torch.rand(1, 3, 8, 8).double()
    padded = torch.tensor(MEAN).double().view(1, 3, 1, 1).expand(1, 3, 10, 10).clone()
    padded[..., 1:-1, 1:-1] = images
    weight, bias = fold_into_bias(conv.weight, None, MEAN, STD)
    torch.testing.assert_close(
        nn.functional.conv2d(padded, weight, bias), conv(normalised(images, bgr=False))
    )


def test_imagenet_constants_are_those_in_bytes() -> None:
    assert [round(255 * value, 3) for value in IMAGENET_MEAN] == [123.675, 116.28, 103.53]
    assert [round(255 * value, 3) for value in IMAGENET_STD] == [58.395, 57.12, 57.375]


def test_inputs_are_untouched_and_precision_is_kept() -> None:
    weight, mean = torch.rand(4, 3, 3, 3).half(), torch.rand(4).half()
    before = weight.clone()
    folded, running_mean = fold_before_batchnorm(weight, mean, MEAN, STD, bgr=True)
    assert weight.equal(before)
    assert folded.dtype == running_mean.dtype == torch.float16


@pytest.mark.parametrize(
    ("weight", "other", "std"),
    [
        (torch.rand(4, 12, 3, 3), torch.rand(4), STD),
        (torch.rand(4, 3), torch.rand(4), STD),
        (torch.rand(4, 3, 3, 3), torch.rand(5), STD),
        (torch.rand(4, 3, 3, 3), torch.rand(4), (1.0, 0.0, 1.0)),
        (torch.rand(4, 3, 3, 3), torch.rand(4), (1.0, 1.0)),
    ],
)
def test_what_does_not_fit_is_refused(
    weight: torch.Tensor, other: torch.Tensor, std: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        fold_before_batchnorm(weight, other, MEAN, std)
    with pytest.raises(ValueError, match="expected"):
        fold_into_bias(weight, other, MEAN, std)
