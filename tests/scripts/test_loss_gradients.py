"""The norms of scripts/loss_gradients.py are those of the gradients, part by part."""

from __future__ import annotations

import pytest
import torch

from models.build import build_model
from scripts.loss_gradients import ALL, PARTS, part_norms, table_lines
from utils.config import ModelConfig


def test_norms_by_part() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(depth=0.33, width=0.125, num_classes=3)).train()
    output = model(torch.rand(1, 3, 64, 64))
    assert output.heatmap_logits is not None
    heat = output.heatmap_logits.square().mean()
    boxes = sum(level.raw.square().mean() for level in output.levels)
    total = heat + boxes
    found = {
        name: part_norms(model, loss) for name, loss in (("heat", heat), ("boxes", boxes), ("all", total))
    }
    total.backward()
    for part, norm in zip(PARTS, found["all"].tolist(), strict=True):
        expected = [
            p.grad.flatten()
            for name, p in model.named_parameters()
            if p.grad is not None
            and (name.split(".")[0] == part or (part == "detector" and "seeker" not in name))
        ]
        assert norm == pytest.approx(torch.cat([torch.zeros(1), *expected]).norm().item(), rel=1e-4)
    column = {part: index for index, part in enumerate(PARTS)}
    for part in ("tokens", "deep", "neck", "head"):
        assert found["heat"][column[part]] == 0
    assert found["boxes"][column["seeker"]] == 0
    assert found["heat"][column["seeker"]] > 0 and found["heat"][column["stem"]] > 0
    assert part_norms(model, torch.zeros(())).tolist() == [0.0] * len(PARTS)


def test_table() -> None:
    norms = torch.zeros(3, len(PARTS))
    norms[:, 0] = torch.tensor([1.0, 3.0, 3.5])
    lines = table_lines(["box", "heatmap", ALL], norms)
    assert lines[0].split() == ["loss", *PARTS, "of", "stem"]
    assert lines[1].split()[::8] == ["box", "25%"]
    assert lines[2].split()[1] == "3.000" and lines[2].endswith("75%")
    assert lines[3].split()[:2] == ["all", "3.500"] and "%" not in lines[3]
