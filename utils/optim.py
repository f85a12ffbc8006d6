"""What moves the weights: optimiser groups, learning-rate schedule, moving average, stopping, freezing.

No training loop here and no model: everything works on any `nn.Module`. Every state is plain data, so
that a checkpoint with it loads with ``weights_only=True``.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from utils.config import HypConfig

OptimizerName = Literal["sgd", "adam", "adamw"]
GROUPS = ("bias", "norm", "weight")
"""Names of the three parameter groups, in their order; ``group["name"]`` holds it."""

MIN_WARMUP_STEPS = 100
ADAM_BETA2 = 0.999


class TrainingSetupError(ValueError):
    """An optimiser, schedule or frozen part that cannot be; the message says what to give instead."""


# --- optimiser ----------------------------------------------------------------------------------


def build_optimizer(
    model: nn.Module, name: OptimizerName, lr: float, momentum: float, weight_decay: float
) -> Optimizer:
    """Optimiser over every trainable parameter, each exactly once, in the three groups of `GROUPS`.

    Biases (own warm-up) and normalisation or other one-dimensional weights are not decayed, all other
    weights are. The groups exist even when empty, so that states of frozen runs fit. SGD uses Nesterov
    momentum; Adam and AdamW take ``momentum`` as beta1. On CUDA the fused implementation is used.

    Raises:
        TrainingSetupError: unknown name, or nothing to train.
    """
    groups = parameter_groups(model)
    if not any(groups.values()):
        raise TrainingSetupError("no trainable parameter: everything is frozen (--freeze)")
    settings: list[dict[str, Any]] = [
        {"params": groups[group], "name": group, "weight_decay": weight_decay if group == "weight" else 0.0}
        for group in GROUPS
    ]
    fused = all(p.is_cuda and p.is_floating_point() for params in groups.values() for p in params) or None
    if name == "sgd":
        return SGD(settings, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
    if name == "adam":
        return Adam(settings, lr=lr, betas=(momentum, ADAM_BETA2), fused=fused)
    if name == "adamw":
        return AdamW(settings, lr=lr, betas=(momentum, ADAM_BETA2), fused=fused)
    raise TrainingSetupError(f"optimiser {name!r} is not one of 'sgd', 'adam', 'adamw'")


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters by group name (`GROUPS`), in the model's order; shared ones once.

    Learned positions and tokens, which are no weights of a layer, go with the norms: they do not decay.
    """
    groups: dict[str, list[nn.Parameter]] = {group: [] for group in GROUPS}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        leaf = name.rpartition(".")[2]
        if leaf.endswith("bias"):
            groups["bias"].append(parameter)
        elif parameter.ndim <= 1 or not leaf.endswith("weight"):
            groups["norm"].append(parameter)
        else:
            groups["weight"].append(parameter)
    return groups


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Restore a state dict, keeping this optimiser's own implementation (fused or not).

    PyTorch would take the saved ``fused`` flag over too, and with it a run saved on CUDA would go on
    with CUDA's implementation on a CPU.

    Raises:
        TrainingSetupError: the state belongs to other parameters or another optimiser.
    """
    saved_groups = [dict(group) for group in state["param_groups"]]
    try:
        for group, saved in zip(optimizer.param_groups, saved_groups, strict=True):
            if len(group["params"]) != len(saved["params"]) or ("betas" in group) != ("betas" in saved):
                raise ValueError(f"group {group.get('name')!r} differs")
            saved.update({key: group[key] for key in ("fused", "foreach") if key in group})
        optimizer.load_state_dict({**state, "param_groups": saved_groups})
    except ValueError as error:
        raise TrainingSetupError(
            f"the saved optimiser state does not fit this optimiser ({error}): resume with the same "
            "model, --optimizer and --freeze as the run had"
        ) from error


def accumulation_steps(nominal: int, batch: int) -> int:
    """Batches whose gradients are added up before a step, so that about ``nominal`` images count: ≥ 1."""
    if nominal < 1 or batch < 1:
        raise TrainingSetupError(f"nominal batch {nominal} and batch {batch} must both be at least 1")
    return max(round(nominal / batch), 1)


def scaled_weight_decay(weight_decay: float, nominal: int, batch: int, accumulate: int) -> float:
    """Weight decay for the images that really make one step: decay · batch · accumulate / nominal."""
    return weight_decay * batch * accumulate / nominal


# --- schedule -----------------------------------------------------------------------------------


def warmup_steps(steps_per_epoch: int, epochs: int, hyp: HypConfig) -> int:
    """Length of the warm-up in iterations (batches).

    ``hyp.warmup_epochs``, but at least `MIN_WARMUP_STEPS` (small datasets have few batches per epoch) and
    at most half of the run (short runs must also train). 0 when warmup_epochs is 0.
    """
    if hyp.warmup_epochs <= 0:
        return 0
    wanted = max(round(hyp.warmup_epochs * steps_per_epoch), MIN_WARMUP_STEPS)
    return min(wanted, steps_per_epoch * epochs // 2)


def lr_at(step: int, steps_per_epoch: int, epochs: int, hyp: HypConfig, is_bias: bool) -> float:
    """Learning rate of an iteration.

    Linear warm-up (biases from ``warmup_bias_lr``, all else from 0, to ``lr0``), then half a cosine from
    ``lr0`` in the first iteration after it to ``lr0 · lrf`` in the run's last one; constant after that.

    Args:
        step: iterations (batches) since the run began, from 0.
        steps_per_epoch: batches per epoch. epochs: of the whole run.
        is_bias: for the group of biases.
    """
    warmup = warmup_steps(steps_per_epoch, epochs, hyp)
    if step < warmup:
        start = hyp.warmup_bias_lr if is_bias else 0.0
        return start + (hyp.lr0 - start) * step / warmup
    last = steps_per_epoch * epochs - 1
    progress = min((step - warmup) / max(last - warmup, 1), 1.0)
    share = hyp.lrf + (1 - hyp.lrf) * (1 + math.cos(math.pi * progress)) / 2
    return hyp.lr0 * share


def momentum_at(step: int, steps_per_epoch: int, epochs: int, hyp: HypConfig) -> float:
    """Momentum (Adam: beta1) of an iteration: linear from ``warmup_momentum`` to ``momentum`` in warm-up."""
    warmup = warmup_steps(steps_per_epoch, epochs, hyp)
    if step >= warmup:
        return hyp.momentum
    return hyp.warmup_momentum + (hyp.momentum - hyp.warmup_momentum) * step / warmup


@dataclass(frozen=True)
class LearningRate:
    """The schedule of one run. Stateless: the iteration is all it needs, so resuming needs no state."""

    hyp: HypConfig
    steps_per_epoch: int
    epochs: int

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1 or self.epochs < 1:
            raise TrainingSetupError(
                f"a schedule needs at least 1 epoch of 1 batch, not {self.epochs} of {self.steps_per_epoch}: "
                "the training set is empty or --epochs is 0"
            )

    @property
    def warmup_steps(self) -> int:
        """Iterations of warm-up, see `warmup_steps`."""
        return warmup_steps(self.steps_per_epoch, self.epochs, self.hyp)

    def lr_at(self, step: int, is_bias: bool = False) -> float:
        """Learning rate of an iteration, see `lr_at`."""
        return lr_at(step, self.steps_per_epoch, self.epochs, self.hyp, is_bias)

    def apply(self, optimizer: Optimizer, step: int) -> None:
        """Set learning rate and momentum of every group of a `build_optimizer` optimiser for an iteration."""
        momentum = momentum_at(step, self.steps_per_epoch, self.epochs, self.hyp)
        for group in optimizer.param_groups:
            group["lr"] = self.lr_at(step, is_bias=group["name"] == "bias")
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum


# --- moving average of the weights --------------------------------------------------------------


class ModelEMA:
    """Exponential moving average of a model's weights and buffers, held in float32 in a model of its own.

    decay of update n = ``decay · (1 - exp(-n / tau))``: the average follows quickly at first. Give the
    plain model, not the DistributedDataParallel wrapper (its ``.module``).

    Attributes:
        module: the averaged model, in evaluation mode, without gradients.
        updates: number of updates so far.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, tau: float = 2000.0) -> None:
        self.module = copy.deepcopy(model).eval().float().requires_grad_(False)
        self.decay = decay
        self.tau = tau
        self.updates = 0

    def decay_at(self, updates: int) -> float:
        """Share of the old average that is kept in update number ``updates`` (the first is 1)."""
        return self.decay * (1 - math.exp(-updates / self.tau))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's present weights in. Floating buffers are averaged like weights, others copied.

        Raises:
            TrainingSetupError: the model has other entries than the average.
        """
        current = model.state_dict()
        average = self.module.state_dict()
        if current.keys() != average.keys():
            raise TrainingSetupError("the model has other entries than its average: give it unwrapped")
        self.updates += 1
        old: list[Tensor] = []
        new: list[Tensor] = []
        for key, value in average.items():
            if value.is_floating_point():
                old.append(value)
                new.append(current[key].detach().to(value.device, value.dtype))
            else:
                value.copy_(current[key])
        # lerp leaves entries that do not change (anchors, frozen weights) exactly as they are.
        torch._foreach_lerp_(old, new, 1 - self.decay_at(self.updates))

    def state_dict(self) -> dict[str, Any]:
        """Plain data: ``{"model": state dict, "updates": int}``."""
        return {"model": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.module.load_state_dict(state["model"])
        self.updates = int(state["updates"])


class EarlyStopping:
    """Remembers the best epoch, and says when nothing has improved for ``patience`` epochs (0: never).

    An epoch with fitness 0 counts as an improvement on 0: as long as nothing is found, the newest
    weights are the best ones.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best_fitness = -math.inf
        self.best_epoch = -1

    def update(self, epoch: int, fitness: float) -> bool:
        """Note the fitness of an epoch (higher is better, NaN never is); True: the best so far."""
        improved = fitness > self.best_fitness or (fitness == 0 and self.best_fitness == 0)
        if improved:
            self.best_fitness, self.best_epoch = fitness, epoch
        return improved

    def should_stop(self, epoch: int) -> bool:
        """Whether ``patience`` epochs have passed since the best one."""
        return self.best_epoch >= 0 and 0 < self.patience <= epoch - self.best_epoch

    def state_dict(self) -> dict[str, float | int]:
        """Plain numbers."""
        return {"best_fitness": self.best_fitness, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Restore what `state_dict` gave."""
        self.best_fitness = float(state["best_fitness"])
        self.best_epoch = int(state["best_epoch"])


# --- freezing -----------------------------------------------------------------------------------


def freeze(model: nn.Module, prefixes: Sequence[str], uncounted: Sequence[str] = ()) -> list[str]:
    """Stop the parameters under some parts of the model from being trained.

    Normalisation statistics are buffers, not parameters: they follow the data all the same as long as
    those modules are in training mode.

    Args:
        prefixes: names such as ``stem``, ``deep.stage4`` or ``head.cls_pred.weight``; a whole part between
            dots counts (``stem`` is not ``stem2``). A number N: the first N layers, see `first_layers`.
        uncounted: parts that a number passes over.

    Returns:
        The names of the frozen parameters, in the model's order.

    Raises:
        TrainingSetupError: a prefix under which there is nothing; names the nearest one.
    """
    names = [name for name, _ in model.named_parameters()]
    wanted: list[str] = []
    for prefix in prefixes:
        wanted += first_layers(model, int(prefix), uncounted) if prefix.isdigit() else [prefix.rstrip(".")]
    for prefix in wanted:
        if not any(_is_under(name, prefix) for name in names):
            raise TrainingSetupError(_no_such_part(prefix, names))
    frozen = [name for name in names if any(_is_under(name, prefix) for prefix in wanted)]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return frozen


def first_layers(model: nn.Module, count: int, uncounted: Sequence[str] = ()) -> list[str]:
    """Names of the model's first ``count`` layers, in the order in which they were built.

    Layers are what remains when the model, its containers and the modules that hold nothing but
    containers are opened: a convolution block counts one, and so does a stage of bottlenecks. Modules
    without parameters and those under a prefix in ``uncounted`` do not count.

    Raises:
        TrainingSetupError: there are fewer layers.
    """
    layers = [name for name in _layers(model, "") if not any(_is_under(name, prefix) for prefix in uncounted)]
    if count > len(layers):
        raise TrainingSetupError(f"--freeze {count}: the model has {len(layers)} layers only")
    return layers[:count]


def _layers(module: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if _is_container(child) or (_has_children(child) and all(map(_is_container, child.children()))):
            yield from _layers(child, f"{path}.")
        elif any(True for _ in child.parameters()):
            yield path


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))


def _has_children(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _is_under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _no_such_part(prefix: str, names: Sequence[str]) -> str:
    parts = {name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)}
    near = difflib.get_close_matches(prefix, sorted(parts), n=1, cutoff=0.5)
    top = sorted({name.split(".")[0] for name in names})
    hint = f"did you mean {near[0]!r}?" if near else f"the parts are: {', '.join(top)}"
    return f"--freeze {prefix}: no parameter of the model is under this name; {hint}"
