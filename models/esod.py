"""The detector: stem on every pixel, heatmap, patches, and the rest of the network on the patches only.

Dense detection (``slicer.algorithm: none``) is the same code with one patch that covers the map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.backbones.base import Backbone
from models.borders import Placement, check_neighbours, see_neighbours
from models.coders import BoxCoder
from models.head import DetectionHead
from models.layers import Fusable
from models.levels import STRIDES, HeadPositions, LevelOutput
from models.recompute import recomputed, recomputed_chain
from models.slicer import Candidates, Patches, covered_cells, cut_patches, slice_greedy, slice_grid, whole_map
from models.sparse import position_masks
from utils.config import ModelConfig, Recompute, SlicerConfig
from utils.profile import StageTimer, count_parameters

MAX_STRIDE = STRIDES[-1]
Where = Sequence[HeadPositions | None] | None
"""Positions of the head by level; None: everywhere."""

NO_TIMER = StageTimer(enabled=False)

PatchSelector = Callable[[Tensor], Patches]
"""Chooses training patches from heatmap logits [B,1,H/8,W/8]."""
Part = Callable[..., tuple[Tensor, ...]]
"""Some of the network, from tensors to tensors; no shape depends on what is in them."""


class PartRunner:
    """Runs the parts of the network: this one just calls them. See `engine.graphs` for another."""

    def run(self, name: str, part: Part, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What a part makes of its inputs; a name always means the same part."""
        return part(*inputs)

    def padded(self, count: int) -> int:
        """How many patches to compute when so many are kept; what is computed for the others is dropped."""
        return count


DIRECTLY = PartRunner()


@dataclass
class ESODOutput:
    """What one forward pass gives, in training and in evaluation alike.

    Attributes:
        heatmap_logits: [B, 1, H/8, W/8], or None for a model without a seeker.
        levels: raw predictions at the model's strides; see `LevelOutput`.
        patches: where they are.
    """

    heatmap_logits: Tensor | None
    levels: list[LevelOutput]
    patches: Patches


class Network(nn.Module):
    """What evaluation and inference need of a network: `ESOD`, or an exported file run by another runtime.

    Called with images, `select`, `timer` and `runner` as `ESOD.forward` is, it gives an `ESODOutput`; an exported file
    has no parts, and no use for a runner.
    """

    config: ModelConfig
    input_hw: tuple[int, int] | None = None
    """Height and width of the only input it takes; None: any multiples of 32."""

    @property
    def coder(self) -> BoxCoder:
        """How to read the raw predictions."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """The type of images that it takes and computes in."""
        raise NotImplementedError

    @property
    def num_parameters(self) -> int:
        """Numbers in its weights."""
        raise NotImplementedError


class ESOD(Network):
    """Efficient small-object detector; build one with `build_model`.

    ``config`` may be replaced at any time by one that differs in slicer and head.sparse only: how patches
    are chosen and where the head runs is decided in each forward pass. (With ``borders: neighbours`` patches must
    stay on the grid.) ``recompute`` says which activations of a training step are computed once
    more in its backward pass instead of being kept; ``heatmap_stem`` which share of the heatmap's gradient reaches
    the stem, 0 to 1.
    """

    recompute: Recompute = "none"
    heatmap_stem: float = 1.0

    def __init__(
        self, config: ModelConfig, backbone: Backbone, head: DetectionHead, seeker: nn.Module | None
    ) -> None:
        super().__init__()
        self.config = config
        self.stem = backbone.stem
        self.seeker = seeker
        self.tokens = backbone.tokens
        self.deep = backbone.deep
        self.neck = backbone.neck
        self.head = head
        self.surroundings = None
        if config.borders == "neighbours":
            check_neighbours(config)
            self.surroundings = see_neighbours((self.deep, self.neck, self.head))
            self.head.see(self.surroundings)

    @property
    def coder(self) -> BoxCoder:
        """That of its head."""
        return self.head.coder

    @property
    def dtype(self) -> torch.dtype:
        """That of its weights."""
        return next(self.parameters()).dtype

    @property
    def num_parameters(self) -> int:
        """Of all its parts."""
        return count_parameters(self)

    def forward(
        self,
        images: Tensor,
        select: PatchSelector | None = None,
        timer: StageTimer = NO_TIMER,
        runner: PartRunner = DIRECTLY,
    ) -> ESODOutput:
        """Detect on a batch.

        Args:
            images: [B, 3, H, W] RGB in 0–1, H and W multiples of 32.
            select: chooses the patches from the heatmap logits (training); None: the configured slicer.
            timer: told the stages stem, seeker, slicer, tokens (where there are some), gather, deep and head.
            runner: runs the parts.

        Raises:
            ValueError: H or W is not a multiple of 32.
        """
        height, width = images.shape[2:]
        if height % MAX_STRIDE or width % MAX_STRIDE:
            raise ValueError(f"input is {height}×{width}; both sides must be multiples of {MAX_STRIDE}")
        with timer.stage("stem"):
            (features,) = runner.run("stem", lambda x: (self._stem(x),), images)
        with timer.stage("seeker"):
            logits = self._seek(features, runner)
        with timer.stage("slicer"):
            patches, positions = self.choose(logits, features, select)
        if self.tokens is not None:
            with timer.stage("tokens"):
                features = self._mix(features, patches)
        if self.surroundings is not None:
            map_hw = (features.shape[2], features.shape[3])
            self.surroundings.place(Placement(patches, len(features), map_hw))
        with timer.stage("gather"):
            cut = cut_patches(features, patches)
        with timer.stage("deep"):
            pyramid = self._pyramid(cut, patches, runner)
        with timer.stage("head"):
            levels = self._detect(pyramid, len(patches), positions, runner)
        return ESODOutput(logits, levels, patches)

    def _stem(self, images: Tensor) -> Tensor:
        """Stride-8 features of every pixel."""
        if self.recompute == "none" or not self.training:
            return self.stem(images)  # type: ignore[no-any-return]
        return recomputed_chain(self.stem, images)

    def _body(self, cut: Tensor, patches: Patches) -> list[Tensor]:
        """Features at the model's strides of patches."""
        if self.recompute != "all" or not self.training:
            return self.neck(*self.deep(cut, patches))  # type: ignore[no-any-return]
        return recomputed(self.neck, *recomputed(self.deep, cut, patches))  # type: ignore[no-any-return]

    def _seek(self, features: Tensor, runner: PartRunner) -> Tensor | None:
        seeker = self.seeker
        if seeker is None:
            return None
        if self.training:
            features = scale_gradient(features, self.heatmap_stem)
        return runner.run("seeker", lambda x: (seeker(x),), features)[0]

    def _pyramid(self, cut: Tensor, patches: Patches, runner: PartRunner) -> list[Tensor]:
        """The levels of the patches, and perhaps of some more behind them, see `PartRunner.padded`."""
        if self.config.transformer:  # the patches of an image look at each other: no others may be among them
            return self._body(cut, patches)
        more = runner.padded(len(patches)) - len(patches)
        if more:
            cut = torch.cat((cut, cut.new_zeros(more, *cut.shape[1:])))
        return list(runner.run("deep", lambda x: tuple(self._body(x, patches)), cut))

    def _detect(
        self,
        pyramid: list[Tensor],
        patches: int,
        positions: Where,
        runner: PartRunner,
    ) -> list[LevelOutput]:
        """The head on the first ``patches`` of a pyramid."""
        if positions is not None:
            return self.head([level[:patches] for level in pyramid], positions)  # type: ignore[no-any-return]
        found = runner.run(
            "head",
            lambda *x: tuple(t for o in self.head(x) for t in (o.raw, o.position)),
            *pyramid,
        )
        levels, strides = [], self.config.strides
        for level, raw, position, stride in zip(pyramid, found[::2], found[1::2], strides, strict=True):
            grid_hw = (level.shape[2], level.shape[3])
            rows = patches * grid_hw[0] * grid_hw[1]  # ordered by patch
            levels.append(LevelOutput(raw[:rows], position[:rows], stride, grid_hw))
        return levels

    def _mix(self, features: Tensor, patches: Patches) -> Tensor:
        """Features after the family's token blocks, computed where a patch lies."""
        assert self.tokens is not None
        map_hw = (features.shape[2], features.shape[3])
        everything = patches.size_cell == map_hw and len(patches) == len(features)
        active = None if everything else covered_cells(patches, len(features), map_hw)
        return self.tokens(features, active)  # type: ignore[no-any-return]

    def choose(
        self, logits: Tensor | None, features: Tensor, select: PatchSelector | None
    ) -> tuple[Patches, Where]:
        """Patches, and the head's positions."""
        if select is not None and logits is not None:
            return select(logits.detach()), None
        dense = logits is None or self.config.slicer.algorithm == "none"
        if logits is None or (dense and not self._sparse()):
            map_hw = (features.shape[2], features.shape[3])
            return whole_map(len(features), map_hw, features.device), None
        return self._slice(logits)

    def _sparse(self) -> bool:
        return self.config.head.sparse and not self.training

    @torch.no_grad()
    def _slice(self, logits: Tensor) -> tuple[Patches, Where]:
        """Patches and sparse positions with one wait for the device in all."""
        device, config = logits.device, self.config
        # Sigmoid in float32: a bf16 or fp16 heatmap would turn neighbouring cells into false plateaus.
        prob = logits.float().sigmoid()
        if config.slicer.algorithm == "greedy":
            prob = prob.cpu()
        candidates = find_candidates(prob, config.slicer)
        masks = []
        if self._sparse():
            masks = position_masks(
                prob,
                candidates,
                config.head.threshold,
                config.strides,
                around=self.head.needs_around,
                across=self.surroundings is not None,
            )
        counts = torch.stack([m.sum() for m in (candidates.keep, *masks)]).tolist()
        patches = candidates.take(counts[0]).to(device)
        kept_order = candidates.keep.cumsum(0) - 1
        found: list[Tensor | None] = []
        for mask, count in zip(masks, counts[1:], strict=True):
            position = torch.nonzero_static(mask, size=count)
            position[:, 0] = kept_order[position[:, 0]]
            found.append(position.to(device, non_blocking=True))
        return patches, _head_positions(found, len(config.strides))

    def fuse(self) -> ESOD:
        """Fold every BatchNorm into its convolution, in place (inference only)."""
        for module in self.modules():
            if isinstance(module, Fusable):
                module.fuse()
        return self


def find_candidates(prob: Tensor, config: SlicerConfig) -> Candidates:
    """Candidate patches by the configured algorithm from heatmap probabilities [B,1,H/8,W/8]."""
    if config.algorithm == "grid":
        return slice_grid(prob, config)
    if config.algorithm == "greedy":
        return slice_greedy(prob, config)
    whole = whole_map(len(prob), (prob.shape[2], prob.shape[3]), prob.device)
    keep = torch.ones(len(whole), dtype=torch.bool, device=prob.device)
    return Candidates(whole.image_index, whole.xyxy_cell, keep, whole.size_cell)


def _head_positions(found: list[Tensor | None], levels: int) -> Where:
    """Per level: what is wanted, all levels first, and then what is around it where a head needs that."""
    if not found:
        return None
    around = found[levels:] or [None] * levels
    return [HeadPositions(w, a) for w, a in zip(found[:levels], around, strict=True) if w is not None]


def scale_gradient(values: Tensor, share: float) -> Tensor:
    """The same values, through which only this share of the gradient, 0 to 1, goes back."""
    if share == 1 or not values.requires_grad:
        return values
    if share == 0:
        return values.detach()
    seen = values.view_as(values)
    seen.register_hook(lambda gradient: share * gradient)
    return seen
