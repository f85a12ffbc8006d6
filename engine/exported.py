"""Exported files as networks, so that detection and evaluation need not know what computes.

What runs them is in deploy/, without torch; here its arrays become the tensors that decoding, suppression and
evaluation take.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deploy.metadata import ExportedFileError, SingleSettings
from deploy.network import Found, SingleGraph, TwoGraphs, open_network
from deploy.slicing import PatchTable, SliceRule
from models.borders import check_neighbours
from models.build import build_coder
from models.coders import BoxCoder, LevelBoxes
from models.decode import PostprocessConfig
from models.esod import DIRECTLY, NO_TIMER, ESODOutput, Network, PartRunner, PatchSelector
from models.levels import STRIDES, LevelOutput, all_positions
from models.slicer import Patches, patch_size, whole_map
from utils.config import ModelConfig, ModelOverrides
from utils.profile import StageTimer
from utils.typed_data import ConfigError, config_from_dict, config_to_dict

CPU = torch.device("cpu")


class ExportedNetwork(Network):
    """A pair of graphs, by ONNX Runtime or OpenVINO, with slicing in NumPy between them."""

    def __init__(self, graphs: TwoGraphs, config: ModelConfig) -> None:
        super().__init__()
        self.graphs = graphs
        self.config = config
        self._coder = build_coder(config)

    @property
    def coder(self) -> BoxCoder:
        """That of the exported head."""
        return self._coder

    @property
    def dtype(self) -> torch.dtype:
        """32 bits."""
        return torch.float32

    @property
    def num_parameters(self) -> int:
        """Of the network that was exported."""
        return self.graphs.info.parameters

    def forward(
        self,
        images: Tensor,
        select: PatchSelector | None = None,
        timer: StageTimer = NO_TIMER,
        runner: PartRunner = DIRECTLY,
    ) -> ESODOutput:
        """Detect on a batch; see `ESOD.forward`. The stem's stage holds the seeker, the deep stage the head.

        Raises:
            ValueError: ``select`` is given, which is for training.
        """
        if select is not None:
            raise ValueError("an exported network cannot be trained: load the .pt file it was made from")
        graphs = self.graphs
        with timer.stage("stem"):
            features, logits = graphs.look(images.numpy())
        with timer.stage("slicer"):
            graphs.rule = SliceRule.of(config_to_dict(self.config.slicer))
            patches = graphs.choose(logits, features)
            inputs = graphs.patch_inputs(features, patches)
        with timer.stage("deep"):
            found = graphs.predict(inputs, patches.size_cell)
        levels = []
        for level in found:
            position = all_positions(len(patches), level.grid_hw, CPU)
            levels.append(
                LevelOutput(_tensor(level.raw).flatten(0, 1), position, level.stride, level.grid_hw)
            )
        return ESODOutput(None if logits is None else _tensor(logits), levels, _patches(patches))


class FinishedCoder(BoxCoder):
    """Boxes that are already detections: raw [M, 1, 4 + classes] = xyxy in input pixels, score of each class.

    Of the scores only one is not zero.
    """

    def best_logit(self, raw: Tensor) -> Tensor:
        """That of the score."""
        return raw[..., 4:].amax(dim=-1).logit()

    def decode(self, number: int, level: LevelOutput, corner_px: Tensor) -> LevelBoxes:
        """Centres and sizes; nothing is added, as the boxes are whole."""
        xyxy, prob = level.raw[..., :4], level.raw[..., 4:]
        boxes = torch.cat(((xyxy[..., :2] + xyxy[..., 2:]) / 2, xyxy[..., 2:] - xyxy[..., :2]), dim=-1)
        return LevelBoxes(boxes, torch.ones_like(prob[..., 0]), prob)


class ExportedSingle(Network):
    """A single-file detector. What it found in an image comes as the predictions of its first patch.

    Suppressing again what was suppressed by the same rule changes nothing.
    """

    def __init__(self, graph: SingleGraph, config: ModelConfig) -> None:
        super().__init__()
        self.graph = graph
        self.config = config
        self.input_hw = (graph.settings.height, graph.settings.width)
        self._coder = FinishedCoder()

    @property
    def coder(self) -> BoxCoder:
        """A `FinishedCoder`."""
        return self._coder

    @property
    def dtype(self) -> torch.dtype:
        """32 bits."""
        return torch.float32

    @property
    def num_parameters(self) -> int:
        """Of the network that was exported."""
        return self.graph.info.parameters

    @property
    def settings(self) -> SingleSettings:
        """What is fixed in the file."""
        return self.graph.settings

    def forward(
        self,
        images: Tensor,
        select: PatchSelector | None = None,
        timer: StageTimer = NO_TIMER,
        runner: PartRunner = DIRECTLY,
    ) -> ESODOutput:
        """Detect on a batch of the file's size; see `ExportedNetwork.forward`. All is one stage, "deep"."""
        if select is not None:
            raise ValueError("an exported network cannot be trained: load the .pt file it was made from")
        with timer.stage("deep"):
            found = list(self.graph(images.numpy()))
        map_hw = (images.shape[2] // STRIDES[0], images.shape[3] // STRIDES[0])
        patches = self._patches(found, map_hw)
        rows = [_finished_rows(one, self.config.num_classes) for one in found]
        patch = torch.searchsorted(patches.image_index, torch.arange(len(found)))
        position = torch.zeros(sum(map(len, rows)), 3, dtype=torch.int64)
        position[:, 0] = patch.repeat_interleave(torch.tensor([len(r) for r in rows]))
        level = LevelOutput(torch.cat(rows).unsqueeze(1), position, STRIDES[0], patches.size_cell)
        return ESODOutput(_logits(found), [level], patches)

    def _patches(self, found: list[Found], map_hw: tuple[int, int]) -> Patches:
        if self.config.slicer.algorithm == "none":
            return whole_map(len(found), map_hw, CPU)
        counts = torch.tensor([len(one.patches) for one in found])
        corners = torch.from_numpy(np.concatenate([one.patches for one in found]))
        size = patch_size(map_hw, self.config.slicer.patches_per_side)
        return Patches(torch.arange(len(found)).repeat_interleave(counts), corners, size)


def load_exported(
    path: str | Path,
    device: str = "",
    overrides: ModelOverrides | None = None,
    *,
    half: bool = False,
    compiled: bool = False,
) -> ExportedNetwork | ExportedSingle:
    """Open exported files as a network that works on CPU tensors, with as many threads as torch has.

    Args:
        path: see `deploy.network.open_network`.
        device: "" or "cpu"; a GPU's number: ONNX Runtime's CUDA provider, where it is installed.
        overrides: how a pair slices; its head runs everywhere on the patches. A single file takes none.
        half, compiled: refused by name.

    Raises:
        ExportedFileError: the files cannot be used.
        ConfigError: the options contradict them.
    """
    for given, option in ((half, "--half"), (compiled, "--compile")):
        if given:
            raise ConfigError(f"{option}: is of the torch network, not of an exported file; leave it out")
    network = open_network(path, torch.get_num_threads(), "cpu" if device in ("", "cpu") else "cuda")
    config = config_from_dict(ModelConfig, network.info.config, f"{path}: configuration")
    changed = (overrides or ModelOverrides()).apply(config)
    if changed.head.sparse:
        raise ConfigError(
            "--head sparse: exported heads run on whole patches; leave it out, or give the .pt file"
        )
    if changed.borders != config.borders:
        raise ConfigError(
            f"--borders {changed.borders}: the file was exported with {config.borders}; leave it out, export anew with "
            "--borders, or give the .pt file"
        )
    if changed.borders == "neighbours":
        check_neighbours(changed)
    if isinstance(network, TwoGraphs):
        return ExportedNetwork(network, changed)
    if changed != config:
        raise ConfigError(
            f"{path}: slicer, threshold and number of patches are fixed in a single file; leave "
            "--slicer, --heatmap-thres and --max-patches out, or export with them"
        )
    return ExportedSingle(network, config)


def check_postprocessing(network: Network, config: PostprocessConfig) -> None:
    """Refuse a post-processing that is not the one in a single file, or a stricter one; others take any.

    Raises:
        ExportedFileError: says with which options to export.
    """
    if not isinstance(network, ExportedSingle):
        return
    fixed = network.settings
    wrong = []
    if config.conf_thres < fixed.conf_thres:
        wrong.append(
            f"a confidence of {config.conf_thres:g} needs --conf-thres (it has {fixed.conf_thres:g})"
        )
    if config.iou_thres != fixed.iou_thres:
        wrong.append(f"an overlap of {config.iou_thres:g} needs --iou-thres (it has {fixed.iou_thres:g})")
    if config.max_det > fixed.max_det:
        wrong.append(f"{config.max_det} detections need --max-det (it has {fixed.max_det})")
    if config.multi_label != fixed.multi_label:
        wanted = "with" if config.multi_label else "without"
        wrong.append(f"this command needs a file exported {wanted} --multi-label")
    if config.agnostic:
        wrong.append("suppression across classes is not offered in a single file")
    if config.nms != "hard":
        wrong.append("it suppresses by itself: --nms has to be hard")
    if wrong:
        raise ExportedFileError(f"this single file has its thresholds in it: {'; '.join(wrong)}")


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _patches(table: PatchTable) -> Patches:
    return Patches(_tensor(table.image_index), _tensor(table.xyxy_cell), table.size_cell)


def _finished_rows(found: Found, classes: int) -> Tensor:
    """[N, 4 + classes] as `FinishedCoder` reads them."""
    rows = torch.zeros(len(found.score), 4 + classes)
    rows[:, :4] = _tensor(found.xyxy)
    rows[torch.arange(len(rows)), 4 + _tensor(found.label)] = _tensor(found.score)
    return rows


def _logits(found: list[Found]) -> Tensor | None:
    """Heatmaps as logits [B, 1, H/8, W/8]."""
    maps = [one.heatmap for one in found if one.heatmap is not None]
    return torch.from_numpy(np.stack(maps)).unsqueeze(1).logit() if maps else None
