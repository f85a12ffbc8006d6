"""Parameter groups, the schedule against hand-computed tables, the moving average, stopping, freezing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from utils.config import HypConfig
from utils.optim import (
    EarlyStopping,
    LearningRate,
    ModelEMA,
    TrainingSetupError,
    accumulation_steps,
    build_optimizer,
    first_layers,
    freeze,
    load_optimizer_state,
    lr_at,
    momentum_at,
    parameter_groups,
    scaled_weight_decay,
    warmup_steps,
)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stage4 = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.stage5 = nn.Sequential(nn.Conv2d(4, 4, 1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.SiLU()


class Net(nn.Module):
    """Three top parts; `scale` is a weight of one dimension outside of any normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Block(), Block(), nn.Upsample(scale_factor=2))
        self.seeker = Block()
        self.deep = Deep()
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("anchors", torch.tensor([0.1, 1 / 3]))


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = Net()
    model.seeker.conv.register_parameter(
        "weight", model.get_parameter("stem.0.conv.weight")
    )  # shared: still once
    model.get_parameter("stem.1.conv.weight").requires_grad_(False)
    optimizer = build_optimizer(model, "sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters() if p.requires_grad}

    names = {id(p): name for name, p in model.named_parameters()}
    by_group = {g["name"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}
    assert by_group["weight"] == {"stem.0.conv.weight", "deep.stage4.0.weight", "deep.stage5.0.weight"}
    assert by_group["norm"] == {
        "scale",
        "stem.0.bn.weight",
        "stem.1.bn.weight",
        "seeker.bn.weight",
        "deep.stage4.1.weight",
    }
    assert all(name.endswith("bias") for name in by_group["bias"])
    assert len(by_group["bias"]) == 6


def test_learned_positions_and_tokens_do_not_decay() -> None:
    model = nn.Linear(2, 3)
    model.register_parameter("position", nn.Parameter(torch.zeros(4, 4, 2)))
    groups = parameter_groups(model)
    assert [tuple(p.shape) for p in groups["norm"]] == [(4, 4, 2)]
    assert [tuple(p.shape) for p in groups["weight"]] == [(3, 2)]


@pytest.mark.parametrize(("name", "cls"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_only_weights_are_decayed(name: str, cls: str) -> None:
    optimizer = build_optimizer(Net(), name, lr=0.01, momentum=0.9, weight_decay=0.25)  # type: ignore[arg-type]
    assert type(optimizer).__name__ == cls
    assert [group["name"] for group in optimizer.param_groups] == ["bias", "norm", "weight"]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0, 0.25]
    for group in optimizer.param_groups:
        assert (
            group["nesterov"] and group["momentum"] == 0.9
            if name == "sgd"
            else group["betas"] == (0.9, 0.999)
        )


def test_a_decay_step_by_hand() -> None:
    # No gradient but decay: w - lr * decay * w * (1 + momentum) in Nesterov's first step.
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, "sgd", lr=0.1, momentum=0.5, weight_decay=0.2)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.2 * 1.5 if name == "0.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_an_empty_group_keeps_its_place_and_nothing_at_all_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    assert [len(g["params"]) for g in build_optimizer(model, "sgd", 0.1, 0.9, 0.1).param_groups] == [0, 0, 1]
    model.requires_grad_(False)
    with pytest.raises(TrainingSetupError, match="frozen"):
        build_optimizer(model, "sgd", 0.1, 0.9, 0.1)
    with pytest.raises(TrainingSetupError, match="'lion' is not one of 'sgd'"):
        build_optimizer(Net(), "lion", 0.1, 0.9, 0.1)  # type: ignore[arg-type]


def test_optimizer_state_keeps_this_machines_implementation(tmp_path: Path) -> None:
    def make(lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(3)
        model = nn.Linear(3, 2)
        return model, build_optimizer(model, "adam", lr, 0.9, 0.1)

    model, optimizer = make(0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["fused"] = True  # as if it came from CUDA
    torch.save(state, tmp_path / "state.pt")

    _, fresh = make(0.3)
    load_optimizer_state(fresh, torch.load(tmp_path / "state.pt", weights_only=True))
    assert [group["fused"] for group in fresh.param_groups] == [None, None, None]
    assert [group["lr"] for group in fresh.param_groups] == [0.1, 0.1, 0.1]
    weight = fresh.param_groups[2]["params"][0]
    torch.testing.assert_close(
        fresh.state[weight]["exp_avg"], optimizer.state[model.get_parameter("weight")]["exp_avg"]
    )


@pytest.mark.parametrize(("other", "name"), [(nn.Linear(3, 2, bias=False), "sgd"), (nn.Linear(3, 2), "adam")])
def test_a_foreign_optimizer_state_is_refused(other: nn.Module, name: str) -> None:
    state = build_optimizer(nn.Linear(3, 2), "sgd", 0.1, 0.9, 0.1).state_dict()
    with pytest.raises(TrainingSetupError, match="--freeze"):
        load_optimizer_state(build_optimizer(other, name, 0.1, 0.9, 0.1), state)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nominal", "batch", "expected"),
    [(64, 8, 8), (64, 64, 1), (64, 128, 1), (64, 24, 3), (64, 1, 64), (64, 100, 1)],
)
def test_accumulation(nominal: int, batch: int, expected: int) -> None:
    assert accumulation_steps(nominal, batch) == expected


def test_weight_decay_follows_the_images_of_a_step() -> None:
    assert scaled_weight_decay(5e-4, 64, 8, 8) == pytest.approx(5e-4)
    assert scaled_weight_decay(5e-4, 64, 128, 1) == pytest.approx(1e-3)
    with pytest.raises(TrainingSetupError, match="at least 1"):
        accumulation_steps(64, 0)


@pytest.mark.parametrize(
    ("steps_per_epoch", "epochs", "warmup_epochs", "expected"),
    [
        (1000, 50, 3.0, 3000),  # as configured
        (10, 50, 3.0, 100),  # at least 100 iterations
        (12, 5, 3.0, 30),  # at most half of the run
        (1, 1, 3.0, 0),  # a single iteration trains
        (100, 10, 0.0, 0),  # none wanted
    ],
)
def test_warmup_length(steps_per_epoch: int, epochs: int, warmup_epochs: float, expected: int) -> None:
    assert warmup_steps(steps_per_epoch, epochs, HypConfig(warmup_epochs=warmup_epochs)) == expected


# 100 batches, 6 epochs, warm-up of 2: iterations 0..199 warm up, 200..599 follow the cosine.
HYP = HypConfig(lr0=0.01, lrf=0.1, warmup_epochs=2, warmup_bias_lr=0.1, momentum=0.937, warmup_momentum=0.8)
LAST_THIRD = 0.01 * (0.1 + 0.9 * (1 + math.cos(math.pi * 266 / 399)) / 2)


@pytest.mark.parametrize(
    ("step", "weights", "biases", "momentum"),
    [
        (0, 0.0, 0.1, 0.8),
        (50, 0.0025, 0.0775, 0.83425),
        (100, 0.005, 0.055, 0.8685),
        (199, 0.00995, 0.01045, 0.936315),
        (200, 0.01, 0.01, 0.937),
        (466, LAST_THIRD, LAST_THIRD, 0.937),
        (599, 0.001, 0.001, 0.937),
        (700, 0.001, 0.001, 0.937),
    ],
)
def test_schedule_by_hand(step: int, weights: float, biases: float, momentum: float) -> None:
    assert lr_at(step, 100, 6, HYP, is_bias=False) == pytest.approx(weights, abs=1e-12)
    assert lr_at(step, 100, 6, HYP, is_bias=True) == pytest.approx(biases, abs=1e-12)
    assert momentum_at(step, 100, 6, HYP) == pytest.approx(momentum, abs=1e-12)


def test_half_of_the_cosine_is_the_mean_of_both_ends() -> None:
    # 3 iterations without warm-up: lr0, the middle, lr0 * lrf.
    hyp = HypConfig(lr0=0.02, lrf=0.5, warmup_epochs=0)
    assert [lr_at(s, 3, 1, hyp, False) for s in range(3)] == pytest.approx([0.02, 0.015, 0.01])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_schedule_is_applied_to_every_group(name: str) -> None:
    optimizer = build_optimizer(Net(), name, lr=0.01, momentum=0.937, weight_decay=0.1)  # type: ignore[arg-type]
    schedule = LearningRate(HYP, steps_per_epoch=100, epochs=6)
    assert schedule.warmup_steps == 200
    schedule.apply(optimizer, 50)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.0775, 0.0025, 0.0025])
    for group in optimizer.param_groups:
        momentum = group["momentum"] if name == "sgd" else group["betas"][0]
        assert momentum == pytest.approx(0.83425)
        assert name == "sgd" or group["betas"][1] == 0.999


def test_a_schedule_without_batches_is_refused() -> None:
    with pytest.raises(TrainingSetupError, match="empty"):
        LearningRate(HYP, steps_per_epoch=0, epochs=3)


def test_ema_by_hand() -> None:
    model = nn.BatchNorm1d(1)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema = ModelEMA(model, decay=0.9, tau=10.0)
    expected = 1.0
    for n, value in enumerate([3.0, -1.0, 2.0], start=1):
        with torch.no_grad():
            model.weight.fill_(value)
            assert model.running_mean is not None and model.num_batches_tracked is not None
            model.running_mean.fill_(value)
            model.num_batches_tracked.fill_(7 * n)
        ema.update(model)
        keep = 0.9 * (1 - math.exp(-n / 10))
        expected = keep * expected + (1 - keep) * value
    state = ema.state_dict()
    assert state["updates"] == 3
    assert state["model"]["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert state["model"]["num_batches_tracked"].item() == 21  # whole numbers are copied
    assert state["model"]["running_mean"].item() != pytest.approx(2.0)  # averaged, not copied
    assert not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert model.training and model.weight.requires_grad


def test_ema_leaves_what_does_not_change_exactly_and_is_kept_in_float32() -> None:
    model = Net().half()
    ema = ModelEMA(model)
    for _ in range(5):
        ema.update(model)
    for key, value in ema.state_dict()["model"].items():
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.equal(value, model.state_dict()[key].to(value.dtype)), key


def test_ema_state_is_plain_and_continues(tmp_path: Path) -> None:
    model = Net()
    one = ModelEMA(model)
    one.update(model)
    torch.save(one.state_dict(), tmp_path / "ema.pt")
    other = ModelEMA(Net())
    other.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    with torch.no_grad():
        model.scale.add_(1.0)
    one.update(model)
    other.update(model)
    assert other.updates == 2
    assert all(torch.equal(v, other.state_dict()["model"][k]) for k, v in one.state_dict()["model"].items())


def test_ema_wants_the_unwrapped_model() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(TrainingSetupError, match="unwrapped"):
        ModelEMA(model).update(nn.Sequential(model))


def test_early_stopping_by_hand() -> None:
    stopping = EarlyStopping(patience=2)
    table = [
        (0.0, True, False),
        (0.0, True, False),
        (0.3, True, False),
        (0.3, False, False),
        (math.nan, False, True),
    ]
    for epoch, (fitness, best, stop) in enumerate(table):
        assert (stopping.update(epoch, fitness), stopping.should_stop(epoch)) == (best, stop)
    assert stopping.state_dict() == {"best_fitness": 0.3, "best_epoch": 2}
    resumed = EarlyStopping(patience=2)
    resumed.load_state_dict(stopping.state_dict())
    assert resumed.should_stop(4) and not resumed.should_stop(3)


def test_early_stopping_without_patience_or_with_nothing_but_nan() -> None:
    never, nan = EarlyStopping(patience=0), EarlyStopping(patience=3)
    assert not never.update(0, math.nan) and not never.should_stop(1000)
    for epoch in range(3):
        nan.update(epoch, math.nan)
        assert not nan.should_stop(epoch)
    assert not nan.should_stop(3), "never tested: nothing is known about improvement"


def test_freeze_by_name_respects_the_dots() -> None:
    model = Net()
    model.add_module("stem2", nn.Linear(1, 1))
    frozen = freeze(model, ["stem", "deep.stage5."])
    assert frozen == [n for n, p in model.named_parameters() if not p.requires_grad]
    assert {name.split(".")[0] for name in frozen} == {"stem", "deep"}
    assert "deep.stage4.0.weight" not in frozen and "stem2.weight" not in frozen
    assert all(p.requires_grad for p in parameter_groups(model)["weight"])


def test_freeze_by_number_counts_layers() -> None:
    layers = ["stem.0", "stem.1", "seeker", "deep.stage4.0", "deep.stage4.1", "deep.stage5.0"]
    assert first_layers(Net(), 6) == layers
    assert first_layers(Net(), 3, uncounted=["seeker"]) == ["stem.0", "stem.1", "deep.stage4.0"]
    frozen = freeze(Net(), ["1"])
    assert frozen == ["stem.0.conv.weight", "stem.0.bn.weight", "stem.0.bn.bias"]
    assert freeze(Net(), ["0"]) == freeze(Net(), []) == []
    with pytest.raises(TrainingSetupError, match="6 layers only"):
        freeze(Net(), ["7"])


@pytest.mark.parametrize(
    ("given", "nearest"), [("steam", "'stem'"), ("deep.stage6", "'deep.stage"), ("zzz", "seeker")]
)
def test_freezing_nothing_is_an_error_that_names_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(TrainingSetupError, match=nearest):
        freeze(Net(), [given])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_fused_on_cuda() -> None:
    optimizer = build_optimizer(Net().cuda(), "sgd", 0.1, 0.9, 0.1)
    assert all(group["fused"] for group in optimizer.param_groups)
