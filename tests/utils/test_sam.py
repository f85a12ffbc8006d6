"""utils/sam.py: a tiny SAM made of the package's own classes, through the real loading and prediction."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from utils.mask_heatmap import ObjectMask, fall_back_reason, mask_heatmap_file
from utils.sam import (
    MASK_CELL,
    PUBLISHED_FILES,
    SamError,
    SamMasker,
    check_sam,
    load_sam,
    sam_fingerprint,
)

segment_anything = pytest.importorskip(
    "segment_anything", reason="the package segment-anything is not installed"
)

Array = npt.NDArray[Any]
SIDE = 64
CPU = torch.device("cpu")


def tiny_sam(depth: int = 1, width: int = 32) -> Any:
    """The smallest SAM: 64×64 pixels, 4×4 tokens."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    tokens = SIDE // 16
    return Sam(
        ImageEncoderViT(img_size=SIDE, embed_dim=width, depth=depth, num_heads=2, out_chans=32),
        PromptEncoder(32, (tokens, tokens), (SIDE, SIDE), mask_in_chans=4),
        MaskDecoder(
            transformer_dim=32,
            transformer=TwoWayTransformer(depth=1, embedding_dim=32, num_heads=2, mlp_dim=32),
            iou_head_depth=1,
            iou_head_hidden_dim=8,
        ),
    )


def save_tiny_sam(path: Path) -> Path:
    """A file with random weights, spread widely enough for masks that are neither empty nor full."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = {name: torch.randn_like(value) * 0.3 for name, value in tiny_sam().state_dict().items()}
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sam(tmp_path_factory.mktemp("sam") / "tiny.pth")


def load(path: Path, build: Callable[[], Any] = tiny_sam, at_type: str = "vit_b") -> SamMasker:
    return load_sam(path, at_type, CPU, builders={at_type: build})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def masker(weights: Path) -> SamMasker:
    return load(weights)


def picture(hw: tuple[int, int], seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def random_boxes(count: int, hw: tuple[int, int], seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, (hw[1] - 6, hw[0] - 6), (count, 2))
    return np.hstack([corner, np.minimum(corner + rng.uniform(5, 30, (count, 2)), (hw[1], hw[0]))])


# --- the real network ------------------------------------------------------------------------------------------


def test_masks_are_those_of_the_package(weights: Path, masker: SamMasker) -> None:
    """One box at a time through `SamPredictor.predict`, as the package's own examples do it."""
    model = tiny_sam()
    model.load_state_dict(torch.load(weights, weights_only=True))
    predictor = segment_anything.SamPredictor(model.eval())
    image, boxes = picture((48, 60)), random_boxes(9, (48, 60))
    predictor.set_image(image)
    seen = set()
    for box, mask in zip(boxes, masker.object_masks(image, boxes), strict=True):
        scale = SIDE / 60
        full = predictor.predict(box=box - 0.5 / scale, multimask_output=False)[0][0]
        assert isinstance(mask, ObjectMask)
        height, width = mask.values.shape
        expected = full[mask.top : mask.top + height, mask.left : mask.left + width]
        assert np.array_equal(mask.values, expected) and mask.area_px == np.count_nonzero(full)
        assert abs(width - (box[2] - box[0])) <= 1 and abs(height - (box[3] - box[1])) <= 1
        seen |= {bool(value) for value in mask.values.reshape(-1)}
    assert seen == {True, False}, "the random network should answer both"


@pytest.mark.parametrize("hw", [(64, 64), (30, 20), (150, 130), (64, 200), (10, 300)])
def test_images_of_any_size_become_heatmaps(masker: SamMasker, hw: tuple[int, int]) -> None:
    boxes = random_boxes(12, hw)
    masks = masker.object_masks(picture(hw), boxes)
    centred = np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])
    file, reasons = mask_heatmap_file(masks, centred, hw, 0.5, "hybrid", "")
    assert file.image_hw == hw and sum(reasons.values()) <= len(boxes)
    again = masker.object_masks(picture(hw), boxes)
    for first, second in zip(masks, again, strict=True):
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            assert np.array_equal(first.values, second.values)


def test_batches_do_not_matter(weights: Path, masker: SamMasker) -> None:
    model = tiny_sam()
    model.load_state_dict(torch.load(weights, weights_only=True))
    one_by_one = SamMasker(segment_anything.SamPredictor(model.eval()), SIDE, mask_pixels_at_once=1)
    image, boxes = picture((64, 64)), random_boxes(7, (64, 64))
    expected = one_by_one.object_masks(image, boxes)
    for mask, other in zip(masker.object_masks(image, boxes), expected, strict=True):
        assert mask is not None and other is not None
        assert np.mean(mask.values != other.values) < 0.02  # sums are in another order


def test_grey_images_and_boxes_at_the_border(masker: SamMasker) -> None:
    grey = np.full((90, 90, 3), 114, dtype=np.uint8)
    boxes = [[0, 0, 10, 10], [80.5, 80.5, 90, 90], [0, 0, 90, 90], [-5, 40, 8, 55], [85, 85, 99, 99]]
    masks = masker.object_masks(grey, boxes)
    shapes = [(m.left, m.top, *m.values.shape) for m in masks if m is not None]
    assert shapes == [(0, 0, 10, 10), (80, 80, 10, 10), (0, 0, 90, 90), (0, 40, 15, 8), (85, 85, 5, 5)]


def test_without_boxes_the_network_rests(weights: Path) -> None:
    model = tiny_sam()
    masker = load(weights, lambda: model)
    windows: list[int] = []
    model.image_encoder.register_forward_hook(lambda *_: windows.append(1))
    assert masker.object_masks(picture((300, 300)), np.zeros((0, 4))) == []
    assert masker.object_masks(picture((300, 300)), [[10, 10, 13.9, 60]]) == [None]  # thinner than MASK_CELL
    assert not windows
    masker.object_masks(picture((300, 300)), [[10, 10, 20, 20], [12, 12, 22, 22], [280, 280, 290, 290]])
    assert len(windows) == 2, "only the tiles with objects are encoded"


def test_what_is_tiny_depends_on_the_scale(masker: SamMasker) -> None:
    small = [10.0, 8.0, 12.0, 10.0]
    assert masker.object_masks(picture((20, 32)), [small])[0] is not None, "seen at 4 pixels: 64 / 32 times 2"
    assert masker.object_masks(picture((20, 33)), [small])[0] is None
    wide = [0.0, 8.0, 300.0, 20.0]  # in the whole image, at 64 / 320 of its size
    assert masker.object_masks(picture((320, 320)), [wide])[0] is None
    assert SIDE / tiny_sam().prompt_encoder.mask_input_size[0] == MASK_CELL


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), np.uint8)]
)  # fmt: skip
def test_other_images_are_refused(masker: SamMasker, image: Array) -> None:
    with pytest.raises(ValueError, match=r"expected an uint8 \[H, W, 3\] image, found"):
        masker.object_masks(image, [[0, 0, 8, 8]])


def test_boxes_that_are_no_numbers_are_refused(masker: SamMasker) -> None:
    with pytest.raises(ValueError, match="box 1 is not finite"):
        masker.object_masks(picture((8, 8)), [[0, 0, 8, 8], [0, 0, np.nan, 8]])


# --- where things are, with a predictor whose answer is known ----------------------------------------------------


class BrightParts:
    """In place of the network: the mask of a box is every bright pixel within 3 pixels of it."""

    def __init__(self) -> None:
        self.transform = segment_anything.utils.transforms.ResizeLongestSide(SIDE)
        self.device = CPU
        self.windows: list[tuple[int, int]] = []
        self.places: list[Array] = []

    def set_image(self, image: Array) -> None:
        self.original_size = image.shape[:2]
        self.bright = torch.as_tensor(image[..., 0] > 128)
        self.windows.append(self.original_size)

    def reset_image(self) -> None:
        vars(self).pop("bright", None)

    def predict_torch(self, *_: None, boxes: torch.Tensor, multimask_output: bool) -> tuple[Any, None, None]:
        assert not multimask_output
        height, width = self.original_size
        places = (boxes + 0.5) / (SIDE / max(height, width))  # what SAM makes of coordinates
        self.places.append(places.numpy())
        y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
        masks = [
            self.bright & (x > x1 - 3) & (x < x2 + 3) & (y > y1 - 3) & (y < y2 + 3)
            for x1, y1, x2, y2 in places
        ]
        return torch.stack(masks)[:, None], None, None


@pytest.mark.parametrize("hw", [(40, 50), (200, 150), (64, 400)])
def test_every_object_gets_its_own_pixels_whatever_the_tile(hw: tuple[int, int]) -> None:
    image = np.zeros((*hw, 3), dtype=np.uint8)
    boxes = np.array([(x, y, x + 8, y + 6) for y in range(1, hw[0] - 8, 13) for x in range(2, hw[1] - 9, 15)])
    for left, top, right, bottom in boxes:
        image[top + 1 : bottom, left:right] = 255
    predictor = BrightParts()
    masks = SamMasker(predictor, SIDE).object_masks(image, boxes)  # type: ignore[arg-type]
    assert max(max(window) for window in predictor.windows) <= SIDE
    for mask, (left, top, _, _) in zip(masks, boxes.tolist(), strict=True):
        assert mask is not None
        assert (mask.left, mask.top, mask.values.shape, mask.area_px) == (left, top, (6, 8), 40)
        assert not mask.values[0].any() and mask.values[1:].all()
        assert fall_back_reason(mask, (left + 4, top + 3, 8, 6), 0.5, "hybrid") is None


def test_prompts_are_the_borders_of_the_boxes() -> None:
    """SAM adds half a pixel of its own resolution, which must not move small objects."""
    predictor = BrightParts()
    boxes = [[3.25, 4, 11, 12.5], [20, 9, 28, 18]]
    SamMasker(predictor, SIDE).object_masks(picture((20, 32)), boxes)  # type: ignore[arg-type]
    assert np.allclose(np.concatenate(predictor.places), boxes, atol=1e-5)


def test_nothing_of_an_image_is_kept() -> None:
    predictor = BrightParts()
    SamMasker(predictor, SIDE).object_masks(picture((20, 32)), [[3, 4, 11, 12]])  # type: ignore[arg-type]
    assert predictor.windows and not hasattr(predictor, "bright")


def test_a_large_object_is_seen_whole() -> None:
    image = np.zeros((100, 180, 3), dtype=np.uint8)
    image[20:90, 15:170] = 255
    predictor = BrightParts()
    (mask,) = SamMasker(predictor, SIDE).object_masks(image, [[15, 20, 170, 90]])  # type: ignore[arg-type]
    assert predictor.windows == [(100, 180)]
    assert mask is not None and mask.values.all() and mask.area_px == 70 * 155


# --- weights files ---------------------------------------------------------------------------------------------


def test_the_network_is_ready_for_use(weights: Path) -> None:
    model = tiny_sam()
    load(weights, lambda: model)
    assert not model.training and not any(value.requires_grad for value in model.parameters())
    expected = torch.load(weights, weights_only=True)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_missing_file_names_the_published_one(tmp_path: Path) -> None:
    for sam_type, name in PUBLISHED_FILES.items():
        with pytest.raises(SamError, match=rf"no such file.*{name}.*--heatmap gaussian"):
            load(tmp_path / "absent.pth", at_type=sam_type)
    with pytest.raises(SamError, match="is no file"):
        load(tmp_path)


def test_unknown_type(weights: Path) -> None:
    with pytest.raises(SamError, match="unknown type of SAM 'vit_x'; known: vit_b, vit_l, vit_h"):
        check_sam(weights, "vit_x")  # type: ignore[arg-type]


def test_missing_package(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(SamError, match="pip install segment-anything.*--heatmap gaussian"):
        load(weights)


@pytest.mark.parametrize(
    "damage, expected",
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: data[: len(data) // 3] + b"\x3c\xc3" + data[len(data) // 3 + 2 :], "checksum"),
        (lambda data: b"", "empty"),
        (lambda data: b"<!DOCTYPE html>", "a web page"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    ],
)
def test_damaged_file(weights: Path, tmp_path: Path, damage: Callable[[bytes], bytes], expected: str) -> None:
    path = tmp_path / "damaged.pth"
    path.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(SamError, match=f"damaged.pth: .*{expected}.*sam_vit_b_01ec64.pth"):
        load(path)


def test_another_published_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "large.pth"
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 1, 1, 1024)}, path)
    with pytest.raises(SamError, match=r"the weights of vit_l, not of vit_b\. Ask for vit_l"):
        load(path, lambda: pytest.fail("built in vain"))


@pytest.mark.parametrize("other", [{"depth": 2}, {"width": 48}])
def test_another_network_is_refused(tmp_path: Path, other: dict[str, int]) -> None:
    path = tmp_path / "other.pth"
    torch.save(tiny_sam(**other).state_dict(), path)
    with pytest.raises(
        SamError, match=r"not the weights of vit_b \(\d+ tensors fit, \d+ do not, among them 'image"
    ):
        load(path)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": torch.zeros(1)}}, {"epoch": 3}])
def test_other_content_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(SamError, match="not a plain state dict"):
        load(path)


def test_weights_that_are_not_finite_are_refused(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    state["mask_decoder.iou_token.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(SamError, match="iou_token"):
        load(tmp_path / "nan.pth")


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    path, target = tmp_path / "trap.pth", tmp_path / "ran"
    torch.save({"image_encoder.pos_embed": Trap(target)}, path)
    with pytest.raises(SamError, match="holds more than tensors"):
        load(path)
    assert not target.exists()


def test_fingerprint_tells_content_and_type(weights: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy.pth", tmp_path / "other.pth"
    copy.write_bytes(weights.read_bytes())
    other.write_bytes(weights.read_bytes()[:-1])
    first = sam_fingerprint(weights, "vit_b")
    assert len(first) == 64 and first == sam_fingerprint(copy, "vit_b")
    assert len({first, sam_fingerprint(other, "vit_b"), sam_fingerprint(weights, "vit_l")}) == 3
    with pytest.raises(SamError, match="cannot be read.*sam_vit_b_01ec64.pth"):
        sam_fingerprint(tmp_path / "absent.pth", "vit_b")
