"""State dicts in the files of other software (torchvision, OpenMMLab, …), read without executing anything in them.

What the names in one mean is not known here (see ``models.convert.checkpoint``). Whole pickled networks, as of YOLOv5 and
the released ESOD, are ``utils.pickle_reader``'s matter; its reading of bytes, its allow-list and limits are used here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from utils.pickle_reader import MAX_PARAMETERS, owned_copy, read_pickled_checkpoint
from utils.torch_archive import CheckpointError

__all__ = ["find_state_dict", "read_pickled_state_dict"]

PLACES = ("state_dict", "model")
"""Keys under which programs keep the state dict: OpenMMLab; torchvision's training scripts."""
WRAPPER = "module."
"""What data-parallel training and weight averaging put in front of every name."""
MAX_TENSORS = 20_000
_NAME = re.compile(r"[\w.]{1,400}", re.ASCII)


def read_pickled_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The flat state dict in a file: under ``state_dict`` or ``model``, or the file as a whole.

    Names are without the ``module.`` of data-parallel training. Tensors are on the CPU, contiguous and owned; float
    types as fp32, integers as saved. Whatever else is in the file (``meta``, ``optimizer``, …) is left out.

    Raises:
        CheckpointError: not such a file, damaged, it names anything outside the allow-list, it holds a whole network
            instead, or something in the state dict is no finite tensor.
    """
    checkpoint = read_pickled_checkpoint(path)
    try:
        state = find_state_dict(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if state is None:
        raise CheckpointError(
            f"{path}: no state dict under {' or '.join(map(repr, PLACES))}, nor is the file one as a whole (it has "
            f"{', '.join(str(key)[:40] for key in list(checkpoint)[:20]) or 'nothing'})."
        )
    return state


def find_state_dict(checkpoint: dict[Any, Any]) -> dict[str, Tensor] | None:
    """The state dict in the contents of a file (see `read_pickled_state_dict`); None when there is none.

    Raises:
        CheckpointError: something in it is no finite tensor, or it is absurdly large.
    """
    for place in PLACES:
        inner = checkpoint.get(place)
        if isinstance(inner, dict) and inner:
            return _checked(inner)
    if checkpoint and all(isinstance(value, Tensor) for value in checkpoint.values()):
        return _checked(checkpoint)
    return None


def _checked(entries: dict[Any, Any]) -> dict[str, Tensor]:
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"a state dict of {len(entries)} entries; not a genuine checkpoint.")
    state: dict[str, Tensor] = {}
    total = 0
    for key, tensor in entries.items():
        if not isinstance(key, str) or not _NAME.fullmatch(key):
            raise CheckpointError(f"{key!r:.80} in the state dict is no name of a tensor.")
        name = key.removeprefix(WRAPPER)
        if not isinstance(tensor, Tensor) or name in state:
            raise CheckpointError(f"{key[:80]} in the state dict is no tensor, or occurs twice.")
        total += tensor.numel()
        if total > MAX_PARAMETERS:
            raise CheckpointError(f"the state dict has more than {MAX_PARAMETERS} values.")
        state[name] = owned_copy(name, tensor)
    return state
