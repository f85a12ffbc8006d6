"""The allow-list of names that a foreign checkpoint's pickle may hold.

Names are text here: none is looked up or imported. What is done with an admitted one says `utils.pickle_interpreter`.
"""

from __future__ import annotations

import re

import torch

STORAGE_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_TORCH_DTYPE_NAMES = {str(dtype) for dtype in STORAGE_DTYPES.values()}
_BUILTIN_NAMES = {
    f"{module}.{name}" for module in ("__builtin__", "builtins") for name in ("set", "bytes", "dict", "list")
}
DICT_NAMES = {"collections.OrderedDict", "collections.defaultdict"}
NUMPY_SCALAR_NAMES = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
NUMPY_ARRAY_NAMES = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}
PATH_NAMES = {
    f"{module}.{name}"
    for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13
    for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
}
_TORCH_BUILDERS = {
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "_codecs.encode",
}
HISTORY_BUFFER = "mmengine.logging.history_buffer.HistoryBuffer"
"""The log of a loss that OpenMMLab's training checkpoints hold."""
METHOD_NAMES = {"__builtin__.getattr", "builtins.getattr"}
"""How a pickle names a method; admitted for methods of the class above only."""
_INERT_NAMES = (
    NUMPY_SCALAR_NAMES
    | NUMPY_ARRAY_NAMES
    | PATH_NAMES
    | {"numpy.ndarray", "numpy.dtype", "torch.device", "types.SimpleNamespace", "argparse.Namespace"}
    | {HISTORY_BUFFER}
)
_KNOWN_NAMES = (
    set(STORAGE_DTYPES) | _TORCH_DTYPE_NAMES | _BUILTIN_NAMES | DICT_NAMES | _TORCH_BUILDERS | _INERT_NAMES
)
# Project code of the YOLO family, whatever it is called; and torch's layers, one file deep.
_INERT_PATTERN = re.compile(
    r"(models|utils|ultralytics)(\.[A-Za-z_]\w*)+"
    r"|torch\.nn\.modules\.(activation|batchnorm|channelshuffle|container|conv|distance|dropout|flatten|fold"
    r"|instancenorm|lazy|linear|loss|module|normalization|padding|pixelshuffle|pooling|rnn|sparse|transformer"
    r"|upsampling)\.[A-Z]\w*",
    re.ASCII,
)
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def is_admitted(argument: str) -> bool:
    """Whether a GLOBAL (``"module name"``) is on the allow-list; dotted attribute paths are not."""
    module, _, name = argument.partition(" ")
    if not _IDENTIFIER.fullmatch(name):
        return False
    dotted = f"{module}.{name}"
    return dotted in _KNOWN_NAMES or _INERT_PATTERN.fullmatch(dotted) is not None


def is_inert(name: str) -> bool:
    """Whether an admitted dotted name becomes a record when it is called or instantiated."""
    return name in _INERT_NAMES or (name not in _KNOWN_NAMES and _INERT_PATTERN.fullmatch(name) is not None)
