"""Parser errors, value types, shared options, and what a command's errors look like to the user."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from utils import cli
from utils.cli import (
    Parser,
    add_device_arguments,
    add_image_size_argument,
    add_model_arguments,
    add_run_arguments,
    default_workers,
    image_size,
    is_user_error,
    model_overrides,
    non_negative_int,
    positive_int,
    probability,
    run_main,
)
from utils.config import HeadConfig, ModelConfig, ModelOverrides, SeekerConfig, SlicerConfig
from utils.typed_data import ConfigError

REFUSED = {"--adam": "use --optimizer adam", "--task study": "use --task speed", "--batch": "never reached"}


def make_parser() -> Parser:
    parser = Parser("Do something.", REFUSED, prog="test.py")
    add_image_size_argument(parser)
    add_model_arguments(parser)
    add_run_arguments(parser, "test")
    add_device_arguments(parser)
    parser.add_argument("--task", default="val", help="what to do")
    parser.add_argument("--batch", type=positive_int, default=8, help="images at a time")
    return parser


def usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a wrong command line prints; it must exit with 2 and leave standard output alone."""
    with pytest.raises(SystemExit) as raised:
        make_parser().parse_args(arguments)
    assert raised.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_defaults() -> None:
    args = make_parser().parse_args([])
    assert (args.slicer, args.head, args.heatmap_thres, args.max_patches) == (None, None, None, None)
    assert (args.project, args.name, args.exist_ok) == ("runs/test", "exp", False)
    assert (args.device, args.half, args.workers) == ("", False, default_workers())
    assert (args.img_size, args.debug, args.batch) == (1536, False, 8)


def test_everything_given() -> None:
    line = (
        "--slicer none --head sparse --heatmap-thres 0.3 --max-patches 12 --project p --name n --exist-ok "
        "--device 0,1 --half --workers 0 --imgsz 864x1536 --debug"
    )
    args = make_parser().parse_args(line.split())
    assert (args.slicer, args.head, args.heatmap_thres, args.max_patches) == ("none", "sparse", 0.3, 12)
    assert (args.project, args.name, args.exist_ok) == ("p", "n", True)
    assert (args.device, args.half, args.workers) == ("0,1", True, 0)
    assert (args.img_size, args.debug) == ((864, 1536), True)


@pytest.mark.parametrize("flag", ["--img-size", "--imgsz", "--img"])
def test_image_size_has_three_names(flag: str) -> None:
    assert make_parser().parse_args([flag, "640"]).img_size == 640


def test_half_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("x")
    add_device_arguments(parser, half=False)
    with pytest.raises(SystemExit):
        parser.parse_args(["--half"])
    assert "unknown option --half" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slicr", "grid"], "unknown option --slicr (did you mean --slicer?)"),
        (["--heatmap_thres=0.3"], "unknown option --heatmap_thres (did you mean --heatmap-thres?)"),
        (["--max", "3"], "unknown option --max"),  # never an abbreviation of --max-patches
        (["--zzzz"], "unknown option --zzzz\n"),
        (["--batch", "4", "image.jpg"], "unexpected argument 'image.jpg'"),
        (["--adam"], "--adam is not offered: use --optimizer adam"),
        (["--adam=1"], "--adam is not offered: use --optimizer adam"),
        (["--task", "study"], "--task study is not offered: use --task speed"),
        (["--task=study"], "--task study is not offered: use --task speed"),
        (["--slicer", "gird"], "--slicer"),
        (["--img-size", "1000"], "1000 is not a multiple of 32: use 992 or 1024"),
        (["--batch", "0"], "'0' is not a whole number of at least 1"),
        (["--device"], "expected one argument"),
    ],
)
def test_usage_errors_name_what_to_do(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = usage_error(arguments, capsys)
    assert text.startswith("test.py: error: ")
    assert message in text
    assert text.endswith("See: test.py --help\n")


def test_what_is_known_is_never_refused_and_other_values_pass() -> None:
    args = make_parser().parse_args(["--batch", "3", "--task", "measure", "--name", "study"])
    assert (args.batch, args.task, args.name) == (3, "measure", "study")


def test_the_command_line_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["test.py", "--batch", "5"])
    assert make_parser().parse_args().batch == 5


def test_examples_end_the_help_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ("python test.py --task val", "python test.py " + "--a-long-option " * 20)
    assert Parser("x", examples=lines).format_help().endswith(f"\nexamples:\n  {lines[0]}\n  {lines[1]}\n")
    assert "examples" not in Parser("x").format_help()


def test_what_was_given_is_known() -> None:
    parser = make_parser()
    parser.parse_args(["--imgsz=640", "--name", "x", "--batch", "3"])
    assert parser.given == {"--imgsz", "--name", "--batch"}
    parser.parse_args([])
    assert parser.given == set()


def test_help_explains_every_option_and_tells_defaults_once(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser()
    with pytest.raises(SystemExit) as raised:
        parser.parse_args(["--help"])
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: runs/test)" in text
    for nothing in ("(default: None)", "(default: False)", "(default: )"):
        assert nothing not in text
    assert all(action.help for action in parser._actions)


@pytest.mark.parametrize(
    ("text", "size"), [("1536", 1536), ("32", 32), ("864x1536", (864, 1536)), ("1536X864", (1536, 864))]
)
def test_image_sizes(text: str, size: int | tuple[int, int]) -> None:
    assert image_size(text) == size


@pytest.mark.parametrize(
    ("convert", "text", "message"),
    [
        (image_size, "0", "use 32"),
        (image_size, "-32", "neither a size"),
        (image_size, "864x", "neither a size"),
        (image_size, "1x2x3", "neither a size"),
        (image_size, "864x1500", "1500 is not a multiple of 32: use 1472 or 1504"),
        (image_size, "big", "neither a size"),
        (positive_int, "0", "at least 1"),
        (positive_int, "1.5", "at least 1"),
        (non_negative_int, "-1", "at least 0"),
        (probability, "1.01", "from 0 to 1"),
        (probability, "nan", "from 0 to 1"),
        (probability, "half", "from 0 to 1"),
    ],
)
def test_bad_values(convert: Callable[[str], object], text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        convert(text)


def test_good_numbers() -> None:
    assert [positive_int("1"), non_negative_int("0")] == [1, 0]
    assert [probability("0"), probability("1"), probability("0.25")] == [0.0, 1.0, 0.25]


def test_workers_by_default_are_at_most_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert default_workers() == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert default_workers() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_workers() == 1


def options(line: str) -> argparse.Namespace:
    return make_parser().parse_args(line.split())


def changed_by(line: str, config: ModelConfig) -> ModelConfig:
    return model_overrides(options(line)).apply(config)


def test_model_options_replace_only_what_is_given() -> None:
    config = ModelConfig(
        slicer=SlicerConfig("grid", threshold=0.4, max_patches=9), head=HeadConfig(sparse=True)
    )
    assert model_overrides(options("")) == ModelOverrides()
    assert changed_by("", config) == config
    changed = changed_by("--slicer greedy --heatmap-thres 0 --max-patches 3 --head dense", config)
    assert changed.slicer == SlicerConfig("greedy", threshold=0.0, max_patches=3)
    # A patch chosen for a weak peak is of use only when the head looks at the peak too.
    assert changed.head == HeadConfig(sparse=False, threshold=0.0)
    assert changed_by("--max-patches 0", config).slicer.max_patches is None
    assert changed_by("--slicer none", config).slicer.algorithm == "none"
    assert config.slicer.threshold == 0.4


@pytest.mark.parametrize(
    ("config", "line", "message"),
    [
        (
            ModelConfig(seeker=SeekerConfig("none"), slicer=SlicerConfig("none")),
            "--slicer grid",
            "no heatmap",
        ),
        (ModelConfig(head=HeadConfig("single")), "--head sparse", "use --head dense"),
    ],
)
def test_model_options_that_contradict_the_model(config: ModelConfig, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed_by(line, config)


# --- run_main -----------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[[], int | None]:
    def main() -> int | None:
        raise error

    return main


class ForeignError(RuntimeError):
    """As if from a library."""


ForeignError.__module__ = "somelibrary.core"


@pytest.fixture(autouse=True)
def _no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["test.py"])


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_status_is_what_main_returns(returned: int | None, status: int) -> None:
    assert run_main(lambda: returned) == status


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("hyp.yaml: unknown key 'lr'"), "error: hyp.yaml: unknown key 'lr'"),
        (FileNotFoundError(2, "No such file or directory", "a.pt"), "error: a.pt: No such file or directory"),
        (FileNotFoundError("no checkpoint in runs"), "error: no checkpoint in runs"),
        (ConfigError(), "error: ConfigError"),
    ],
)
def test_a_users_error_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(raising(error)) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"{line}\n")


def test_out_of_memory_says_what_to_reduce(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))) == 1
    assert "--batch-size" in capsys.readouterr().err


def test_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("error", [KeyError("x"), ForeignError("deep\ninside"), AssertionError()])
def test_a_bug_is_one_line_that_says_where(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(raising(error)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"internal error: {type(error).__name__}: ")
    assert "test_cli.py:" in line and "--debug shows the traceback" in line


def test_exit_of_the_parser_passes() -> None:
    with pytest.raises(SystemExit):
        run_main(raising(SystemExit(2)))


def test_where_a_plain_error_comes_from_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def caught(function: Callable[[], object]) -> Exception:
        try:
            function()
        except (ValueError, RuntimeError) as error:
            return error
        raise AssertionError("nothing was raised")

    # raised in utils/config.py, and by Python for a line there; against one deep inside torch
    ours = caught(lambda: ModelConfig(seeker=SeekerConfig("none")))
    plain = caught(lambda: call_in("utils.somewhere", tmp_path, "int('three')"))
    torchs = caught(lambda: call_in("torch.somewhere", tmp_path, "int('three')"))
    assert [is_user_error(e) for e in (ours, plain, torchs)] == [True, True, False]
    assert not is_user_error(ValueError("never raised"))
    # not written for the user: tell how to find the place
    assert run_main(lambda: call_in("models.somewhere", tmp_path, "int('three')")) == 1
    assert "'three' (--debug shows where)\n" in capsys.readouterr().err


def call_in(module: str, folder: Path, expression: str) -> None:
    """Evaluate an expression in a module of that name."""
    path = folder / f"{module}.py"
    path.write_text(f"{expression}\n")
    spec = importlib.util.spec_from_file_location(module, path)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("how", ["--debug", "ESOD_DEBUG=1", "ESOD_DEBUG=0"])
def test_debugging_shows_the_traceback(how: str, root: Path) -> None:
    code = (
        "import sys\nfrom utils.cli import run_main\nfrom utils.config import ConfigError\n"
        "def main():\n    raise ConfigError('wrong key')\nsys.exit(run_main(main))\n"
    )
    name, _, value = how.partition("=")
    environment = {**os.environ, "PYTHONPATH": str(root), **({name: value} if value else {})}
    arguments = [] if value else [name]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.endswith("error: wrong key\n")
    assert ("Traceback" in done.stderr) == (how != "ESOD_DEBUG=0")
