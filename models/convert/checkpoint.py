"""Foreign checkpoints of any kind as configuration and weights of this project: whose converter is the right one.

It neither opens files nor builds modules; see `models.weights` for that. A family whose files are state dicts joins
by one line in `STATE_DICTS`; those whose files are whole pickled networks are told apart in `models.convert.networks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from models.convert.gpvit import gpvit_config, is_gpvit, rename_gpvit
from models.convert.networks import config_of_released, layout_of, rename_released
from models.convert.rtmdet import is_openmmlab_rtmdet, openmmlab_rtmdet_config, rename_openmmlab_rtmdet
from models.convert.torchvision import is_torchvision, rename_torchvision, torchvision_config
from utils.checkpoint import CheckpointError
from utils.config import ModelConfig
from utils.pickle_reader import extract_network
from utils.state_dict_reader import find_state_dict

SHOWN_NAMES = 4


class Converted(NamedTuple):
    """What a foreign checkpoint becomes.

    Attributes:
        config: of the network the tensors belong to.
        state_dict: this project's keys; of a state dict without our head an initialisation only.
        left_over: keys of the source that have no place here.
    """

    config: ModelConfig
    state_dict: dict[str, Tensor]
    left_over: list[str]


class StateDictFamily(NamedTuple):
    """How to convert the state dicts of one program's files.

    Attributes:
        title: for messages.
        recognises: whether a state dict is of this kind, by its names alone.
        config: of the network it belongs to; may raise `CheckpointError`.
        rename: its tensors under this project's names, and the keys left over; may raise `CheckpointError`.
    """

    title: str
    recognises: Callable[[Mapping[str, Tensor]], bool]
    config: Callable[[Mapping[str, Tensor]], ModelConfig]
    rename: Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], list[str]]]


STATE_DICTS = (
    StateDictFamily(
        "torchvision's ResNet-50 and RetinaNet", is_torchvision, torchvision_config, rename_torchvision
    ),
    StateDictFamily("GPViT", is_gpvit, gpvit_config, rename_gpvit),
    StateDictFamily(
        "OpenMMLab's CSPNeXt and RTMDet",
        is_openmmlab_rtmdet,
        openmmlab_rtmdet_config,
        rename_openmmlab_rtmdet,
    ),
)


def convert_checkpoint(checkpoint: dict[Any, Any]) -> Converted:
    """Convert the contents of a foreign file, as `read_pickled_checkpoint` gives them.

    Raises:
        CheckpointError: no network and no state dict in it, one of an unknown family, or something is missing.
    """
    state = find_state_dict(checkpoint)
    if state is not None:
        return convert_state_dict(state)
    network = extract_network(checkpoint)
    return Converted(config_of_released(network), *rename_released(network.state_dict, layout_of(network)))


def convert_state_dict(state: Mapping[str, Tensor]) -> Converted:
    """Convert a state dict of one of `STATE_DICTS`.

    Raises:
        CheckpointError: it is of none of them, or something in it is missing.
    """
    for family in STATE_DICTS:
        if family.recognises(state):
            return Converted(family.config(state), *family.rename(state))
    names = ", ".join(list(state)[:SHOWN_NAMES])
    titles = "; ".join(family.title for family in STATE_DICTS)
    raise CheckpointError(
        f"a state dict of {len(state)} tensors ({names}, …) is of none of the kinds that can be converted: {titles}"
    )
