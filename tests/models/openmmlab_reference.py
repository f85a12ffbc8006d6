"""OpenMMLab's RTMDet written down independently: names and shapes of its files, and what it computes from them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
"""Of blue, green, red in 0–255, as the detectors' configurations give them."""


def official_shapes(width: float, depth: float, *, detector: bool = True) -> dict[str, tuple[int, ...]]:
    """Every name and shape in a published file; with the detector's neck and head, or the classifier's head."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inputs: int, outputs: int, kernel: int, groups: int = 1) -> None:
        shapes[f"{name}.conv.weight"] = (outputs, inputs // groups, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (outputs,)
        shapes[f"{name}.bn.num_batches_tracked"] = ()

    def csp(name: str, inputs: int, outputs: int, blocks: int, attention: bool) -> None:
        half = outputs // 2
        conv(f"{name}.main_conv", inputs, half, 1)
        conv(f"{name}.short_conv", inputs, half, 1)
        conv(f"{name}.final_conv", 2 * half, outputs, 1)
        for k in range(blocks):
            conv(f"{name}.blocks.{k}.conv1", half, half, 3)
            conv(f"{name}.blocks.{k}.conv2.depthwise_conv", half, half, 5, groups=half)
            conv(f"{name}.blocks.{k}.conv2.pointwise_conv", half, half, 1)
        if attention:
            shapes[f"{name}.attention.fc.weight"] = (2 * half, 2 * half, 1, 1)
            shapes[f"{name}.attention.fc.bias"] = (2 * half,)

    first = int(64 * width // 2)
    conv("backbone.stem.0", 3, first, 3)
    conv("backbone.stem.1", first, first, 3)
    conv("backbone.stem.2", first, int(64 * width), 3)
    for stage, (inputs, outputs, blocks) in enumerate(
        ((64, 128, 3), (128, 256, 6), (256, 512, 6), (512, 1024, 3)), start=1
    ):
        name, channels = f"backbone.stage{stage}", int(outputs * width)
        conv(f"{name}.0", int(inputs * width), channels, 3)
        if stage == 4:
            conv(f"{name}.1.conv1", channels, channels // 2, 1)
            conv(f"{name}.1.conv2", 4 * (channels // 2), channels, 1)
        csp(f"{name}.{2 if stage == 4 else 1}", channels, channels, max(round(blocks * depth), 1), True)
    if not detector:
        return shapes | {"head.fc.weight": (1000, int(1024 * width)), "head.fc.bias": (1000,)}

    c3, c4, c5 = (int(c * width) for c in (256, 512, 1024))
    blocks = max(round(3 * depth), 1)
    for index, (low, high) in enumerate(((c4, c5), (c3, c4))):
        conv(f"neck.reduce_layers.{index}", high, low, 1)
        csp(f"neck.top_down_blocks.{index}", 2 * low, low, blocks, False)
    for index, (low, high) in enumerate(((c3, c4), (c4, c5))):
        conv(f"neck.downsamples.{index}", low, low, 3)
        csp(f"neck.bottom_up_blocks.{index}", 2 * low, high, blocks, False)
    for index, channels in enumerate((c3, c4, c5)):
        conv(f"neck.out_convs.{index}", channels, c3, 3)
        conv(f"bbox_head.cls_convs.{index}.0", c3, c3, 3)
        shapes[f"bbox_head.rtm_cls.{index}.weight"] = (80, c3, 1, 1)
        shapes[f"bbox_head.rtm_cls.{index}.bias"] = (80,)
    return shapes


def official_state(width: float, depth: float, *, detector: bool = True) -> dict[str, Tensor]:
    """Random weights under the published names that keep the signal at about unit size."""
    state = {}
    for name, shape in official_shapes(width, depth, detector=detector).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = torch.rand(shape) + 0.5
        elif len(shape) > 1:
            fan_in = torch.Size(shape[1:]).numel()
            state[name] = torch.randn(shape) * (2 / fan_in) ** 0.5
        else:
            state[name] = torch.randn(shape) * 0.3
    return state


def pyramid(state: Mapping[str, Tensor], pixels: Tensor, *, bgr: bool = True) -> list[Tensor]:
    """What neck and body compute, without the convolutions behind the neck: three levels.

    Args:
        state: see `official_state`.
        pixels: [B, 3, H, W] RGB in 0–255.
        bgr: whether the network takes blue, green, red.

    Around the picture lies black where the original pads with the mean colour: a network whose normalisation is in
    its first convolution cannot do otherwise.
    """
    order, mean, std = ([2, 1, 0], MEAN, STD) if bgr else ([0, 1, 2], MEAN[::-1], STD[::-1])
    x = F.pad(pixels[:, order], (1, 1, 1, 1))
    x = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    x = conv(state, "backbone.stem.0", x, 2, padding=0)
    x = conv(state, "backbone.stem.2", conv(state, "backbone.stem.1", x))
    levels = []
    for stage in range(1, 5):
        name = f"backbone.stage{stage}"
        x = conv(state, f"{name}.0", x, 2)
        if stage == 4:
            x = conv(state, f"{name}.1.conv1", x)
            x = torch.cat([x] + [F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13)], dim=1)
            x = conv(state, f"{name}.1.conv2", x)
        x = csp(state, f"{name}.{2 if stage == 4 else 1}", x, identity=stage < 4)
        levels.append(x)
    _, p3, p4, p5 = levels
    if "neck.reduce_layers.0.conv.weight" not in state:
        return [p3, p4, p5]
    up5 = conv(state, "neck.reduce_layers.0", p5)
    mixed4 = csp(state, "neck.top_down_blocks.0", torch.cat((twice(up5), p4), dim=1), identity=False)
    up4 = conv(state, "neck.reduce_layers.1", mixed4)
    out3 = csp(state, "neck.top_down_blocks.1", torch.cat((twice(up4), p3), dim=1), identity=False)
    down3 = conv(state, "neck.downsamples.0", out3, 2)
    out4 = csp(state, "neck.bottom_up_blocks.0", torch.cat((down3, up4), dim=1), identity=False)
    down4 = conv(state, "neck.downsamples.1", out4, 2)
    out5 = csp(state, "neck.bottom_up_blocks.1", torch.cat((down4, up5), dim=1), identity=False)
    return [out3, out4, out5]


def twice(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def conv(
    state: Mapping[str, Tensor], name: str, x: Tensor, stride: int = 1, padding: int | None = None
) -> Tensor:
    weight = state[f"{name}.conv.weight"]
    padding = weight.shape[-1] // 2 if padding is None else padding
    x = F.conv2d(x, weight, None, stride, padding, groups=x.shape[1] // weight.shape[1])
    shift, scale = (state[f"{name}.bn.{part}"].view(-1, 1, 1) for part in ("bias", "weight"))
    mean, variance = (state[f"{name}.bn.running_{part}"].view(-1, 1, 1) for part in ("mean", "var"))
    x = (x - mean) / torch.sqrt(variance + 1e-5) * scale + shift
    return x * torch.sigmoid(x)


def csp(state: Mapping[str, Tensor], name: str, x: Tensor, identity: bool) -> Tensor:
    main, short = conv(state, f"{name}.main_conv", x), conv(state, f"{name}.short_conv", x)
    k = 0
    while f"{name}.blocks.{k}.conv1.conv.weight" in state:
        block = f"{name}.blocks.{k}"
        y = conv(state, f"{block}.conv1", main)
        y = conv(state, f"{block}.conv2.pointwise_conv", conv(state, f"{block}.conv2.depthwise_conv", y))
        main = main + y if identity else y
        k += 1
    both = torch.cat((main, short), dim=1)
    if f"{name}.attention.fc.weight" in state:
        means = both.mean(dim=(2, 3))
        logits = (
            means @ state[f"{name}.attention.fc.weight"][..., 0, 0].T + state[f"{name}.attention.fc.bias"]
        )
        both = both * ((logits + 3).clamp(0, 6) / 6)[..., None, None]
    return conv(state, f"{name}.final_conv", both)
