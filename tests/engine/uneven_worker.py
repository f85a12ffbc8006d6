"""Run by test_elastic.py in several processes: training steps in which only the first process has objects at all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as torch_dist
from torch.nn.parallel import DistributedDataParallel

from models.build import build_model
from models.loss import DetectionLoss
from models.training_patches import training_selector
from utils.config import HypConfig, ModelConfig, Recompute
from utils.dist import cleanup, gather_objects, init_distributed, sum_over_processes

STEPS = 3
HYP = HypConfig(empty_patch_share=0.0)


def train(rank: int, world_size: int, recompute: Recompute) -> tuple[list[int], float]:
    """Patches of each step in this process, and the sum of its weights afterwards."""
    torch.manual_seed(9)
    model = build_model(ModelConfig(depth=0.33, width=0.125, num_classes=3)).train()
    model.recompute = recompute
    criterion = DetectionLoss(model.config, HYP, reduce_counts=sum_over_processes, world_size=world_size)
    network = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    counts = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(100 * rank + step)
        images = torch.rand(1, 3, 128, 128, generator=generator)
        objects = 5 if rank == 0 else 0
        boxes = torch.rand(objects, 4, generator=generator) * 0.2 + 0.3
        targets = torch.cat([torch.zeros(objects, 2), boxes], dim=1)
        label = torch.full((1, 1, 16, 16), float(rank == 0))
        selector = training_selector(label, model.config.slicer, HYP, 0.0, 10, generator)
        output = network(images, selector)
        criterion(output, targets, label)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
        counts.append(len(output.patches))
    return counts, sum(p.double().sum().item() for p in model.parameters())


def main() -> None:
    """Train with and without recomputed activations; the main process writes what all found."""
    info = init_distributed("cpu")
    found = {kind: train(info.rank, info.world_size, kind) for kind in ("none", "stem", "all")}  # type: ignore[arg-type]
    gathered = gather_objects(found)
    if info.is_main:
        Path(sys.argv[1]).write_text(json.dumps(gathered))
    torch_dist.barrier()
    cleanup()


if __name__ == "__main__":
    main()
