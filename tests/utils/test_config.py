"""Typed configuration: values that no network can have, and the hyper-parameter file that lists all defaults."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import ROOT
from utils.config import HypConfig, ModelConfig
from utils.typed_data import ConfigError, config_from_dict, config_to_dict, load_yaml


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"depth": 0}, "depth is 0.0; expected more than 0"),
        ({"width": -1}, "width is -1.0"),
        ({"width": float("nan")}, "width is nan"),
        ({"max_channels": 0}, "max_channels is 0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"bn_eps": -1e-5}, "bn_eps is -1e-05"),
        ({"spp_kernels": [3, 4]}, r"spp_kernels is \[3, 4\]; expected odd numbers"),
        ({"seeker": {"kernel": 12}}, "seeker.kernel is 12; expected an odd number"),
        ({"slicer": {"patches_per_side": 0}}, "slicer.patches_per_side is 0"),
        ({"slicer": {"threshold": 1.5}}, "slicer.threshold is 1.5; expected 0 to 1"),
        ({"slicer": {"max_patches": 0}}, "slicer.max_patches is 0; expected at least 1, or null"),
        ({"head": {"threshold": -0.1}}, "head.threshold is -0.1"),
        ({"head": {"kind": "dfl", "bins": 1}}, "head.bins is 1; expected at least 2"),
    ],
)
def test_impossible_numbers_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_dict(ModelConfig, data)


def test_limits_are_possible() -> None:
    slicer = {"patches_per_side": 1, "threshold": 0, "max_patches": None}
    config = config_from_dict(ModelConfig, {"slicer": slicer, "head": {"threshold": 1, "bins": 2}})
    assert config.slicer.threshold == 0 and config.head.bins == 2


def test_the_default_hyper_parameter_file_lists_every_one_with_its_default() -> None:
    assert load_yaml(ROOT / "data" / "hyps" / "default.yaml") == config_to_dict(HypConfig())
