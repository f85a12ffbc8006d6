"""Building blocks of the command lines: the parser, value types, shared options, and error handling.

What a command does with its options is not decided here. Option names follow YOLOv5's documentation;
options that we do not offer are refused by name with what to use instead.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from utils.allocator import keep_freed_memory
from utils.config import ModelOverrides

STRIDE = 32
"""Image sides must be multiples of the deepest stride."""

DEBUG_VARIABLE = "ESOD_DEBUG"

# Code whose ValueError or RuntimeError is a message to the user rather than a bug deep inside a library.
_OWN_PACKAGES = frozenset(
    {
        "utils",
        "models",
        "evaluate",
        "engine",
        "deploy",
        "train",
        "test",
        "detect",
        "export",
        "scripts",
        "__main__",
    }
)


# --- parser -------------------------------------------------------------------------------------


EXAMPLES = "examples:"
"""Heading of the examples at the end of every help; a command a line follows."""


class _HelpFormatter(argparse.HelpFormatter):
    """Adds "(default: …)" to options that have a default worth telling."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        nothing = (
            action.default is None or action.default is False or action.default in ("", [], argparse.SUPPRESS)
        )
        if text is None or nothing or "default" in text:
            return text
        return f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """An argument parser that never guesses: no abbreviations, unknown options are errors that name the
    nearest known one, refused options are errors that say what to use instead. Usage errors exit with 2.

    Every parser understands ``--debug``, which `run_main` looks at.

    Args:
        description: what the command does.
        refused: option, or option and value ("--task study"), → what to do instead.
        prog: name of the command; by default its file name.
        examples: whole command lines, for the end of the help; tests/test_command_lines.py checks that they parse.

    Attributes:
        given: the option strings of the command line that was parsed last, as they were written.
    """

    def __init__(
        self,
        description: str,
        refused: Mapping[str, str] | None = None,
        prog: str | None = None,
        examples: Sequence[str] = (),
    ) -> None:
        super().__init__(
            prog=prog, description=description, formatter_class=_HelpFormatter, allow_abbrev=False
        )
        self.refused = dict(refused or {})
        self.examples = tuple(examples)
        self.given: set[str] = set()
        self.add_argument("--debug", action="store_true", help="on an error, print the traceback as well")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse a command line (without the program's name; by default ``sys.argv``)."""
        arguments = list(sys.argv[1:] if args is None else args)
        self._check_refused(arguments)
        plain = arguments[: arguments.index("--")] if "--" in arguments else arguments
        words = [word.partition("=")[0] for word in plain]
        self.given = set(words) & set(self._option_string_actions)
        # First, because argparse would rather complain of a required option that was misspelt.
        misspelt = [word for word in words if re.match("--[a-z]", word) and word not in self.given]
        if misspelt:
            self.error("; ".join(self._unknown(word) for word in misspelt))
        parsed, unknown = super().parse_known_args(arguments, namespace)
        if unknown:
            self.error("; ".join(self._unknown(text) for text in unknown))
        return parsed

    def format_help(self) -> str:
        """The help, with the examples at its end."""
        text = super().format_help()
        if not self.examples:
            return text
        return "\n".join([text, EXAMPLES, *(f"  {line}" for line in self.examples), ""])

    def error(self, message: str) -> NoReturn:
        """Print the message in one line on standard error and exit with 2."""
        self.exit(2, f"{self.prog}: error: {message}\nSee: {self.prog} --help\n")

    def _check_refused(self, arguments: list[str]) -> None:
        known = set(self._option_string_actions)
        for index, argument in enumerate(arguments):
            if argument == "--":
                return
            option, _, value = argument.partition("=")
            following = value or (arguments[index + 1] if index + 1 < len(arguments) else "")
            for name in (f"{option} {following}", option):
                if name in self.refused and name not in known:
                    self.error(f"{name} is not offered: {self.refused[name]}")

    def _unknown(self, text: str) -> str:
        if not text.startswith("-"):
            return f"unexpected argument {text!r}"
        option = text.partition("=")[0]
        # --batch_size is meant as --batch-size
        names = [name for name in self._option_string_actions if name.startswith("--")]
        near = difflib.get_close_matches(option.replace("_", "-"), names, n=1, cutoff=0.5)
        return f"unknown option {option}" + (f" (did you mean {near[0]}?)" if near else "")


# --- value types --------------------------------------------------------------------------------


def positive_int(text: str) -> int:
    """A whole number ≥ 1."""
    return _whole_number(text, 1)


def non_negative_int(text: str) -> int:
    """A whole number ≥ 0."""
    return _whole_number(text, 0)


def probability(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def image_size(text: str) -> int | tuple[int, int]:
    """``"1536"`` → 1536, the longer side; ``"864x1536"`` → (864, 1536), height and width. Pixels.

    Every side is a positive multiple of `STRIDE`; another one is an error that names the nearest.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a size (1536) nor HEIGHTxWIDTH (864x1536)")
    sides = [int(part) for part in parts]
    for side in sides:
        if side < STRIDE or side % STRIDE:
            below, above = side // STRIDE * STRIDE, (side // STRIDE + 1) * STRIDE
            nearest = f"{below} or {above}" if below else f"{above}"
            raise argparse.ArgumentTypeError(f"{side} is not a multiple of {STRIDE}: use {nearest}")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _whole_number(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value


# --- shared options -----------------------------------------------------------------------------


def default_workers() -> int:
    """Data loading processes or threads by default: one per usable CPU core, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, usable)


def add_image_size_argument(
    parser: argparse.ArgumentParser, default: int | None = 1536, note: str = ""
) -> None:
    """``--img-size`` (also ``--imgsz``, ``--img``) → ``img_size``, see `image_size`; note: behind its help."""
    parser.add_argument(
        "--img-size",
        "--imgsz",
        "--img",
        type=image_size,
        default=default,
        metavar="PIXELS",
        help="network input: longer side, or HEIGHTxWIDTH such as 864x1536; pixels, multiples of 32" + note,
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """``--slicer --head --heatmap-thres --max-patches --borders``; each None unless given, see `model_overrides`."""
    group = parser.add_argument_group("model (default: as in the checkpoint, or in --cfg)")
    how = "how patches are placed: grid (fast), greedy (a little better), none (dense: one patch for all)"
    group.add_argument("--slicer", choices=("grid", "greedy", "none"), help=how)
    how = "detection head on whole patches, or only around heatmap peaks (training is always dense)"
    group.add_argument("--head", choices=("dense", "sparse"), help=how)
    how = "a heatmap cell is active from this probability on (0-1); higher: fewer patches"
    group.add_argument("--heatmap-thres", type=probability, metavar="P", help=how)
    how = "at most this many patches per image, best first; 0: no limit"
    group.add_argument("--max-patches", type=non_negative_int, metavar="N", help=how)
    how = "what a patch's layers see beyond its border: zeros, or what the kept patches beside it hold there"
    group.add_argument("--borders", choices=("zeros", "neighbours"), help=how)


def check_model_options(parser: Parser, options: argparse.Namespace) -> None:
    """End a command whose `add_model_arguments` options contradict each other, with status 2."""
    if options.slicer == "none" and options.max_patches:
        parser.error("--max-patches limits patches, --slicer none has one patch for all: leave one out")
    if options.slicer == "none" and options.borders == "neighbours":
        parser.error(
            "--borders neighbours: --slicer none has one patch, with nothing beside it: leave one out"
        )


def add_nms_argument(group: argparse._ArgumentGroup) -> None:
    """``--nms``; see `utils.suppression`."""
    group.add_argument(
        "--nms",
        choices=("hard", "soft", "fusion"),
        default="hard",
        help="a box that overlaps a better one of its class is removed (hard), loses score, the more the larger the "
        "overlap (soft), or is averaged with it (fusion)",
    )


def check_nms_options(parser: Parser, options: argparse.Namespace) -> None:
    """End a command whose --nms contradicts its other options, with status 2."""
    if options.nms == "soft" and "--iou-thres" in parser.given:
        parser.error("--iou-thres is for --nms hard and fusion, soft has no threshold: leave one out")


def model_overrides(args: argparse.Namespace) -> ModelOverrides:
    """What the `add_model_arguments` options change about a model."""
    return ModelOverrides(args.slicer, args.head, args.heatmap_thres, args.max_patches, args.borders)


def add_run_arguments(parser: argparse.ArgumentParser, task: str) -> None:
    """``--project --name --exist-ok``: where the run writes, see `utils.runs.new_run_dir`."""
    group = parser.add_argument_group("output")
    group.add_argument("--project", default=f"runs/{task}", metavar="DIR", help="folder of the runs")
    group.add_argument(
        "--name", default="exp", help="folder of this run in the project; a taken name gets a number (exp2)"
    )
    group.add_argument("--exist-ok", action="store_true", help="write into the folder even when it exists")


def add_report_argument(parser: argparse.ArgumentParser) -> None:
    """``--no-report``, for commands that leave a ``report.html``."""
    parser.add_argument(
        "--no-report",
        action="store_true",
        help="do not write report.html (scripts/report.py makes one of a finished run)",
    )


def add_device_arguments(parser: argparse.ArgumentParser, half: bool = True) -> None:
    """``--device --workers`` and, unless half is False, ``--half``."""
    group = parser.add_argument_group("hardware")
    group.add_argument(
        "--device",
        default="",
        metavar="DEVICE",
        help="cpu, a GPU number (0), or GPU numbers for as many processes (0,1); "
        "by default the first GPU, or the CPU when there is none",
    )
    group.add_argument(
        "--workers",
        type=non_negative_int,
        default=default_workers(),
        metavar="N",
        help="data loading processes, per training process; 0: none",
    )
    if half:
        add_speed_arguments(group)


def add_speed_arguments(group: argparse._ArgumentGroup) -> None:
    """``--half --compile --graphs``."""
    group.add_argument(
        "--half",
        action="store_true",
        help="compute in 16 bits (GPU: fp16; CPU: bf16 where the processor is made for it, else float32 all the same)",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="generate code for this network by torch.compile: a minute or so for each new image size, faster then",
    )
    group.add_argument(
        "--graphs",
        action="store_true",
        help="GPU only: record the network as CUDA graphs, which pays for small batches of few different sizes",
    )


# --- running ------------------------------------------------------------------------------------


def run_main(main: Callable[[], int | None]) -> int:
    """Run a command; return its exit status: what it returns (None: 0), 1 after an error, 130 after Ctrl-C.

    An error that the user can do something about is told in one line on standard error, with ``--debug`` or ESOD_DEBUG=1
    its traceback as well; any other is a bug: one line says what and where. Memory that is freed is kept (`utils.allocator`).
    """
    keep_freed_memory()
    try:
        return main() or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - whatever it is, the user is told in one line
        if debugging():
            traceback.print_exc()
        print(f"error: {_describe(error)}" if is_user_error(error) else _describe_bug(error), file=sys.stderr)
        return 1


def is_user_error(error: BaseException) -> bool:
    """Whether an exception speaks to the user: files and devices that fail, memory that runs out, and the
    ValueError and RuntimeError that this project's own code raises."""
    if isinstance(error, OSError) or _is_out_of_memory(error):
        return True
    return isinstance(error, (ValueError, RuntimeError)) and _raised_by_us(error)


def debugging() -> bool:
    """Whether tracebacks are wanted: ``--debug`` on the command line, or ESOD_DEBUG=1."""
    return "--debug" in sys.argv[1:] or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def _describe_bug(error: BaseException) -> str:
    """One line about an exception that nobody wrote for the user: what, where, and how to see more."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return f"internal error: {what} ({frame.filename}:{frame.lineno}; --debug shows the traceback)"


def _raised_by_us(error: BaseException) -> bool:
    if _is_own_class(error):
        return True
    frames: Iterable[Any] = traceback.walk_tb(error.__traceback__)
    modules = [frame.f_globals.get("__name__", "") for frame, _ in frames]
    return bool(modules) and modules[-1].split(".")[0] in _OWN_PACKAGES


def _is_own_class(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in _OWN_PACKAGES


def _is_out_of_memory(error: BaseException) -> bool:
    """By name: importing torch for it would make every ``--help`` slow."""
    return type(error).__name__ == "OutOfMemoryError"


def _describe(error: BaseException) -> str:
    if _is_out_of_memory(error):
        return "out of GPU memory: use a smaller --batch-size or --img-size, or limit --max-patches"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = str(error) or type(error).__name__
    return text if _is_own_class(error) or isinstance(error, OSError) else f"{text} (--debug shows where)"
