"""Foreign checkpoints of any kind as configuration and weights of this project: whose converter is the right one.

It neither opens files nor builds modules; see `models.weights` for that. A family whose files are state dicts joins
by one line in `STATE_DICTS`; those whose files are whole pickled networks are told apart in `models.convert.networks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from models.convert.gpvit import gpvit_config, is_gpvit, rename_gpvit
from models.convert.networks import config_of_released, layout_of, rename_released
from models.convert.rtmdet import is_openmmlab_rtmdet, openmmlab_rtmdet_config, rename_openmmlab_rtmdet
from models.convert.torchvision import is_torchvision, rename_torchvision, torchvision_config
from utils.checkpoint import CheckpointError
from utils.config import ModelConfig
from utils.pickle_reader import PickledNetwork, extract_network
from utils.state_dict_reader import find_state_dict
from utils.torch_archive import MALFORMED_ERRORS

SHOWN_NAMES = 4


class Converted(NamedTuple):
    """What a foreign checkpoint becomes.

    Attributes:
        config: of the network the tensors belong to.
        state_dict: this project's keys; of a state dict without our head an initialisation only.
        left_over: keys of the source that have no place here.
        left_over_values: how many numbers they hold.
        licence: what the publisher says of such files, for the record; never advice.
    """

    config: ModelConfig
    state_dict: dict[str, Tensor]
    left_over: list[str]
    left_over_values: int
    licence: str


class StateDictFamily(NamedTuple):
    """How to convert the state dicts of one program's files.

    Attributes:
        title: for messages.
        licence: see `Converted`.
        recognises: whether a state dict is of this kind, by its names alone.
        config: of the network it belongs to; may raise `CheckpointError`.
        rename: its tensors under this project's names, and the keys left over; may raise `CheckpointError`.
    """

    title: str
    licence: str
    recognises: Callable[[Mapping[str, Tensor]], bool]
    config: Callable[[Mapping[str, Tensor]], ModelConfig]
    rename: Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], list[str]]]


STATE_DICTS = (
    StateDictFamily(
        "torchvision's ResNet-50 and RetinaNet",
        "torchvision: BSD-3-Clause code; trained on ImageNet or COCO, whose terms may apply",
        is_torchvision,
        torchvision_config,
        rename_torchvision,
    ),
    StateDictFamily(
        "GPViT",
        "GPViT's authors state none; trained on ImageNet, whose terms may apply",
        is_gpvit,
        gpvit_config,
        rename_gpvit,
    ),
    StateDictFamily(
        "OpenMMLab's CSPNeXt and RTMDet",
        "OpenMMLab: Apache-2.0; trained on ImageNet or COCO, whose terms may apply",
        is_openmmlab_rtmdet,
        openmmlab_rtmdet_config,
        rename_openmmlab_rtmdet,
    ),
)


def convert_checkpoint(checkpoint: dict[Any, Any]) -> Converted:
    """Convert the contents of a foreign file, as `read_pickled_checkpoint` gives them.

    Raises:
        CheckpointError: no network and no state dict in it, one of an unknown family, or something is missing or
            of an impossible shape or type.
    """
    state = find_state_dict(checkpoint)
    return convert_network(extract_network(checkpoint)) if state is None else convert_state_dict(state)


def convert_network(network: PickledNetwork) -> Converted:
    """Convert a whole pickled network.

    Raises:
        CheckpointError: of an unknown family, or something in it is missing or of an impossible shape or type.
    """
    with _refusing_damage():
        config = config_of_released(network)
        renamed, left_over = rename_released(network.state_dict, layout_of(network))
    return Converted(
        config, renamed, left_over, _values(network.state_dict, left_over), network_licence(config)
    )


def convert_state_dict(state: Mapping[str, Tensor]) -> Converted:
    """Convert a state dict of one of `STATE_DICTS`.

    Raises:
        CheckpointError: it is of none of them, or something in it is missing or of an impossible shape.
    """
    for family in STATE_DICTS:
        if family.recognises(state):
            with _refusing_damage():
                config = family.config(state)
                renamed, left_over = family.rename(state)
            return Converted(config, renamed, left_over, _values(state, left_over), family.licence)
    names = ", ".join(list(state)[:SHOWN_NAMES])
    titles = "; ".join(family.title for family in STATE_DICTS)
    raise CheckpointError(
        f"a state dict of {len(state)} tensors ({names}, …) is of none of the kinds that can be converted: {titles}"
    )


def network_licence(config: ModelConfig) -> str:
    """What is known of the licence of whole pickled networks; see `Converted`."""
    if config.family == "yolov8":
        return "YOLOv8's files: AGPL-3.0"
    if config.head.kind == "single":
        return "YOLOv5's files: GPL-3.0 up to release v7.0 of 2022, AGPL-3.0 since"
    return "released with ESOD's code: GPL-3.0; trained on a dataset whose terms may apply"


@contextmanager
def _refusing_damage() -> Iterator[None]:
    """Turns what the converters stumble over, such as a tensor without dimensions, into a `CheckpointError`."""
    try:
        yield
    except CheckpointError:
        raise
    except MALFORMED_ERRORS as error:
        raise CheckpointError(
            f"the network in this file is damaged or of another kind ({type(error).__name__}: {error})"
        ) from error


def _values(state: Mapping[str, Tensor], keys: list[str]) -> int:
    return sum(state[key].numel() for key in keys)
