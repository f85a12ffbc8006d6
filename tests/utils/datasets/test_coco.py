"""COCO's JSON form: people's own files, TinyPerson's flags, everything that can be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.utils.datasets.conftest import MakeImage, WriteJson
from utils.datasets.base import ImageAnnotations, PrepareError
from utils.datasets.coco import find_coco, is_crowd, read_coco, to_box_rows
from utils.datasets.tinyperson import ANNOTATIONS, find_tinyperson

HW = (54, 102)
CATEGORIES = [{"id": 7, "name": "boat"}, {"id": 3, "name": "person"}]


def image(identity: int | str, name: str) -> dict[str, Any]:
    return {"id": identity, "file_name": name, "height": HW[0], "width": HW[1]}


def box(image_id: int | str, bbox: list[float], category: int = 3, **flags: Any) -> dict[str, Any]:
    return {"image_id": image_id, "bbox": bbox, "category_id": category, **flags}


def read(annotations: object) -> ImageAnnotations:
    return annotations.read(HW)  # type: ignore[attr-defined,no-any-return]


def test_categories_become_classes_in_the_order_of_their_ids(
    tmp_path: Path, make_image: MakeImage, write_json: WriteJson
) -> None:
    folder = tmp_path / "images"
    names = [f"{number}.jpg" for number in range(5)]
    for name in names:
        make_image(folder / name)
    rows = [box("i0", [10, 10, 5, 8], 7), box("i0", [20, 10, 5, 8]), box("i0", [0, 0, 50, 50], iscrowd=1)]
    content = {"images": [image(f"i{n[0]}", n) for n in names], "annotations": rows, "categories": CATEGORIES}
    source = find_coco(write_json(tmp_path / "a.json", content), folder)
    assert source.class_names == ["person", "boat"]
    train, val = source.splits
    assert (len(train.jobs), len(val.jobs), train.problems) == (4, 1, [])
    (first,) = [job for job in train.jobs + val.jobs if job.image.name == "0.jpg"]
    found = read(first.annotations)
    np.testing.assert_array_equal(found.boxes, [[10, 10, 15, 18], [20, 10, 25, 18]])
    np.testing.assert_array_equal(found.labels, [1, 0])
    np.testing.assert_array_equal(found.ignored, [[0, 0, 50, 50]])


def test_a_validation_file_of_its_own(tmp_path: Path, make_image: MakeImage, write_json: WriteJson) -> None:
    make_image(tmp_path / "images" / "a.jpg")
    make_image(tmp_path / "images" / "b.jpg")
    files = [
        write_json(
            tmp_path / f"{n}.json",
            {"images": [image(1, f"{n}.jpg")], "annotations": [], "categories": CATEGORIES},
        )
        for n in "ab"
    ]
    train, val = find_coco(files[0], tmp_path / "images", files[1]).splits
    assert [job.image.name for job in train.jobs + val.jobs] == ["a.jpg", "b.jpg"]
    assert train.problems == []
    other = {"images": [], "annotations": [], "categories": CATEGORIES[:1]}
    with pytest.raises(PrepareError, match="categories differ"):
        find_coco(files[0], tmp_path / "images", write_json(tmp_path / "c.json", other))


def test_what_does_not_fit_together_is_told(
    tmp_path: Path, make_image: MakeImage, write_json: WriteJson
) -> None:
    make_image(tmp_path / "images" / "a.jpg")
    make_image(tmp_path / "images" / "unlisted é.png")
    make_image(tmp_path / "images" / "a_masked.jpg")
    content = {
        "images": [
            image(1, "a.jpg"), image(2, "gone.jpg"), image(1, "x.jpg"), image(3, "a.jpg"), {"id": 4}, 5,
            image(6, "../a.jpg"),
        ],
        "annotations": [box(1, [1, 1, 5, 5]), box(9, [1, 1, 5, 5]), "no", box(1, [1, 1, 5, 5], 99), {"image_id": 1}],
        "categories": CATEGORIES,
    }  # fmt: skip
    train, val = find_coco(write_json(tmp_path / "a.json", content), tmp_path / "images").splits
    assert (len(train.jobs), len(val.jobs)) == (1, 0)
    problems = "\n".join(train.problems)
    for expected in (
        "gone.jpg: no such image",
        "image x.jpg: the id 1 is that of a.jpg too",
        "image a.jpg is listed twice",
        "found {'id': 4}",
        "found 5",
        "../a.jpg: expected a path below",
        "unlisted é.png: no entry for it",
    ):
        assert expected in problems
    assert len(train.problems) == 7
    assert ["annotations[1]" in train.warnings[0], "annotations[2]" in train.warnings[1]] == [True, True]
    found = read(train.jobs[0].annotations)
    assert found.dropped == {"category out of range": 1, "no bbox": 1}


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not a JSON file"),
        ("[]", "no list 'images'"),
        ('{"images": []}', "no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', "no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": "1", "name": "x"}]}', "integer id and a name"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}, {"id": 1, "name": "y"}]}', "two cat"),
    ],
)  # fmt: skip
def test_files_of_another_form_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(PrepareError, match=message):
        read_coco(path)
    with pytest.raises(PrepareError, match=r"no such file; found a.json"):
        read_coco(tmp_path / "b.json")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
ENTRIES = st.dictionaries(
    st.sampled_from(["id", "image_id", "file_name", "bbox", "category_id", "name", "iscrowd"]), VALUES
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["images", "annotations", "categories"]), st.lists(ENTRIES | VALUES, max_size=4)
    )
)
def test_any_json_is_read_or_refused_in_our_words(
    tmp_path_factory: pytest.TempPathFactory, content: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content))
    try:
        found = read_coco(path)
    except PrepareError:
        return
    for entry in found.images:
        rows = to_box_rows(entry.file_name, entry.rows, dict.fromkeys(found.categories, 0), is_crowd).read(HW)
        assert len(rows.boxes) == len(rows.labels)


def tiny_person(root: Path, make_image: MakeImage, write_json: WriteJson) -> None:
    train = root / "erase_with_uncertain_dataset" / "train"
    make_image(train / "labeled_images" / "a.jpg")
    make_image(train / "pure_bg_images" / "sea.jpg")
    make_image(root / "erase_with_uncertain_dataset" / "test" / "labeled_images" / "b.jpg")
    categories = [{"id": 1, "name": "person", "supercategory": "none"}]
    rows = [
        box(0, [10, 10, 5, 8], 1, ignore=False, uncertain=False, logo=True, in_dense_image=True, iscrowd=0),
        box(0, [30, 10, 5, 8], 1, ignore=True, uncertain=False),
        box(0, [50, 10, 5, 8], 1, ignore=False, uncertain=True),
    ]
    write_json(
        root / ANNOTATIONS["train"],
        {"images": [image(0, "labeled_images/a.jpg"), image(1, "sea.jpg")], "annotations": rows, "categories": categories},
    )  # fmt: skip
    write_json(
        root / ANNOTATIONS["test"],
        {"images": [image(0, "b.jpg")], "annotations": [], "categories": categories},
    )


def test_tinyperson(tmp_path: Path, make_image: MakeImage, write_json: WriteJson) -> None:
    tiny_person(tmp_path, make_image, write_json)
    source = find_tinyperson(tmp_path)
    train, test = source.splits
    assert (source.class_names, source.mask_ignored) == (("person",), False)
    assert [split.problems for split in source.splits] == [[], []]
    assert [job.image.name for job in train.jobs] == ["a.jpg", "sea.jpg"]
    first, background = (read(job.annotations) for job in train.jobs)
    np.testing.assert_array_equal(first.boxes, [[10, 10, 15, 18]])
    assert first.dropped == {"ignored region": 2}
    assert len(background.labels) == 0
    assert [job.image.name for job in test.jobs] == ["b.jpg"]


def test_tinyperson_that_is_not_complete(
    tmp_path: Path, make_image: MakeImage, write_json: WriteJson
) -> None:
    with pytest.raises(PrepareError, match="not a TinyPerson folder"):
        find_tinyperson(tmp_path)
    tiny_person(tmp_path, make_image, write_json)
    folder = tmp_path / "erase_with_uncertain_dataset" / "train"
    (folder / "labeled_images" / "a.jpg").rename(folder / "labeled_images" / "c.jpg")
    train, _ = find_tinyperson(tmp_path).splits
    assert [problem.rsplit("/", 1)[1].split(",")[0] for problem in train.problems] == [
        "a.jpg: no such image",
        "c.jpg: no entry for it in tiny_set_train_all_erase.json",
    ]
    (tmp_path / "erase_with_uncertain_dataset").rename(tmp_path / "elsewhere")
    with pytest.raises(PrepareError, match="expected the images of tiny_set_train_all_erase.json"):
        find_tinyperson(tmp_path)
