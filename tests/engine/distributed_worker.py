"""Run by test_distributed.py in several processes: the gradient of a joint batch, each process with its share."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from models.build import build_model
from models.esod import ESOD
from models.loss import DetectionLoss
from models.slicer import fixed_grid
from utils.config import HypConfig, ModelConfig
from utils.dist import cleanup, init_distributed, sum_over_processes

CLASSES = 3
IMAGES = 4


def joint_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, targets and label heatmaps; the second half has more objects than the first."""
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(IMAGES, 3, 96, 96, generator=generator)
    heatmaps = torch.rand(IMAGES, 1, 12, 12, generator=generator)
    image_index = torch.tensor([0, 2, 2, 2, 3, 3]).float()
    label = torch.tensor([0, 1, 2, 0, 1, 1]).float()
    boxes = torch.rand(6, 4, generator=generator) * 0.3 + 0.3
    return images, torch.cat((image_index[:, None], label[:, None], boxes), dim=1), heatmaps


def build() -> ESOD:
    """The same model in every process, with BatchNorm in evaluation mode."""
    torch.manual_seed(9)
    return build_model(ModelConfig(depth=0.33, width=0.125, num_classes=CLASSES)).eval()


def gradients(world_size: int = 1, rank: int = 0) -> dict[str, torch.Tensor]:
    """Gradients of this process after one backward pass over its share of the joint batch."""
    model = build()
    images, targets, heatmaps = joint_batch()
    share = IMAGES // world_size
    first = rank * share
    mine = (targets[:, 0] >= first) & (targets[:, 0] < first + share)
    own_targets = targets[mine].clone()
    own_targets[:, 0] -= first
    criterion = DetectionLoss(
        model.config, HypConfig(), reduce_counts=sum_over_processes, world_size=world_size
    )
    network = DistributedDataParallel(model) if world_size > 1 else model
    output = network(
        images[first : first + share], lambda logits: fixed_grid(len(logits), (12, 12), 8, logits.device)
    )
    criterion(output, own_targets, heatmaps[first : first + share])["total"].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def main() -> None:
    """Join the processes; the main one writes its gradients."""
    info = init_distributed("cpu")
    found = gradients(info.world_size, info.rank)
    if info.is_main:
        torch.save(found, Path(sys.argv[1]))
    cleanup()


if __name__ == "__main__":
    main()
