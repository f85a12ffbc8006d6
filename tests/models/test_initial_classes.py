"""Initial weights of other classes: what is known of a class by its name goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.build import build_model
from models.esod import ESOD
from models.weights import Weights, initialise, same_classes
from utils.config import HeadConfig, ModelConfig

COCO = ["person", "bicycle", "car", "traffic light"]


def network(kind: str, names: list[str], seed: int) -> ESOD:
    torch.manual_seed(seed)
    config = ModelConfig(
        depth=0.33, width=0.125, num_classes=len(names), names=names, head=HeadConfig(kind=kind)
    )
    return build_model(config)


def layers(model: ESOD, kind: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Class and other rows [A, n] of the biases of each level's class layer."""
    found = []
    for level in model.head.levels:
        conv = level.get_submodule("predict" if kind == "single" else "cls_pred")
        others = 5 if kind == "single" else 0
        assert isinstance(conv.bias, torch.Tensor)
        rows = conv.bias.detach().unflatten(0, (-1, others + model.config.num_classes))
        found.append((rows[:, others:], rows[:, :others]))
    return found


@pytest.mark.parametrize("kind", ["single", "decoupled", "dfl", "center"])
@pytest.mark.parametrize(
    "names", [["van", "Car", "traffic_light"], ["car", "person", "tram", "bicycle"]], ids=["fewer", "as many"]
)
def test_rows_go_on_by_name(kind: str, names: list[str]) -> None:
    """Every level and every anchor; other classes keep their first values, also where there are as many."""
    old, new = network(kind, COCO, 0), network(kind, names, 1)
    with torch.no_grad():
        for parameter in old.head.parameters():
            parameter.uniform_(-1, 1)
    first = [classes.clone() for classes, _ in layers(new, kind)]
    report = initialise(new, Weights(old.config, old.state_dict()))
    same = same_classes(COCO, names)
    assert report.classes == [names[place] for place in sorted(same)]
    assert len(report.carried) == 2 * len(new.head.levels)
    for (old_rows, old_others), (new_rows, new_others), before in zip(
        layers(old, kind), layers(new, kind), first, strict=True
    ):
        assert torch.equal(new_others, old_others)
        for place in range(len(names)):
            expected = old_rows[:, same[place]] if place in same else before[:, place]
            assert torch.equal(new_rows[:, place], expected), names[place]
    assert "car" in report.summary().casefold()


@pytest.mark.parametrize("names", [COCO, ["a", "b", "c", "d"], ["Person", "b", "CAR", "d"], []])
def test_as_many_classes_in_their_places_are_copied(names: list[str]) -> None:
    """Also renamed ones, and those whose names nobody knows."""
    old, new = network("dfl", COCO, 0), network("dfl", COCO, 1)
    new.config = replace(new.config, names=names)
    report = initialise(new, Weights(old.config, old.state_dict()))
    assert report.complete and not report.carried
    assert all(
        torch.equal(a, b) for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(("old", "new"), [([], ["car", "van"]), (COCO, ["ship", "plane"]), (COCO, [])])
def test_nothing_in_common(old: list[str], new: list[str]) -> None:
    source, target = network("dfl", COCO, 0), network("dfl", ["x", "y"], 1)
    target.config = replace(target.config, names=new)
    first = layers(target, "dfl")[0][0].clone()
    report = initialise(target, Weights(replace(source.config, names=old), source.state_dict()))
    assert not report.carried and not report.classes
    assert torch.equal(layers(target, "dfl")[0][0], first)


def test_another_width_is_left_alone() -> None:
    """Layers that do not fit are not carried, whatever their classes."""
    old = network("dfl", COCO, 0)
    new = build_model(replace(old.config, width=0.25, num_classes=2, names=["car", "van"]))
    assert not initialise(new, Weights(old.config, old.state_dict())).carried


def test_names() -> None:
    assert same_classes(["traffic light", "car", "--"], ["Car", "Traffic-Light", "bus", "__"]) == {0: 1, 1: 0}
    assert same_classes(["汽车"], ["汽车"]) == {0: 0}
    # Two that only punctuation tells apart: by their exact names, or not at all.
    assert same_classes(["C", "C++", "x"], ["C", "C++", "x"]) == {0: 0, 1: 1, 2: 2}
    assert same_classes(["C", "C++", "x"], ["c", "C++", "X"]) == {1: 1, 2: 2}
