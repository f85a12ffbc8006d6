"""Every command: its help ends with examples that parse, wrong options are named and exit with 2, errors take one line.

Commands are found by their files, so that new ones are held to it as well.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_house import ROOT, command_lines, each, name_of
from tests.test_readme import Block, Parse, parser_of, wrong

PASS_ON = {"train.sh", "run_tests.sh"}
"""Arguments that these do not know go to train.py and to pytest, which judge them."""


def module_commands() -> list[Path]:
    """What is started by ``python -m``: modules of the packages that have a main."""
    folders = ("engine", "models", "utils", "evaluate")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in files if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")]


PYTHON = [path for path in command_lines() if path.suffix == ".py"] + module_commands()
SHELL = [path for path in command_lines() if path.suffix == ".sh"]


def exit_of(parse: Parse, arguments: list[str]) -> int:
    """The status with which a parser ends the command."""
    with pytest.raises(SystemExit) as raised:
        parse(arguments)
    assert isinstance(raised.value.code, int)
    return raised.value.code


def called(path: Path) -> str:
    """How a command is written on a command line."""
    name = name_of(path)
    if path.suffix == ".sh":
        return f"bash {name}"
    return (
        f"python -m {name.removesuffix('.py').replace('/', '.')}"
        if path in module_commands()
        else f"python {name}"
    )


def wrong_examples(path: Path, lines: list[str]) -> list[str]:
    """What is wrong with the examples of a command."""
    found = [] if lines else ["there is none"]
    for line in lines:
        (command,) = Block("bash", 1, line).commands()
        if called(path) not in " ".join(command.bare).replace("./scripts", "scripts"):
            found.append(f"{line}: an example of another command")
        elif problem := wrong(command):
            found.append(f"{line}: {problem}")
    return found


def test_commands_are_found() -> None:
    names = {name_of(path) for path in PYTHON}
    assert {
        "train.py",
        "test.py",
        "detect.py",
        "scripts/data_prepare.py",
        "evaluate/visdrone.py",
        "models/summary.py",
    } <= names
    assert len(SHELL) >= 5


@each(PYTHON)
def test_examples_of_python_commands_parse(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(parser_of(name_of(path)), ["--help"]) == 0
    _, _, tail = capsys.readouterr().out.partition("\nexamples:\n")
    assert wrong_examples(path, [line.strip() for line in tail.splitlines() if line.strip()]) == []


@each(SHELL)
def test_examples_of_shell_commands_parse(path: Path) -> None:
    result = subprocess.run(["bash", str(path), "--help"], capture_output=True, text=True, check=True)
    pattern = rf"^ +((?:[A-Z_]+=\S+ )*bash (?:\./)?{re.escape(name_of(path))}\b.*?)(?: {{3,}}.*)?$"
    lines = re.findall(pattern, result.stdout, re.MULTILINE)
    assert lines, "no example in --help"
    if path.name not in PASS_ON:
        assert wrong_examples(path, lines) == []


@each(PYTHON)
def test_a_misspelt_option_is_named_with_the_nearest(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parse = parser_of(name_of(path))
    exit_of(parse, ["--help"])
    options = sorted(
        set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", capsys.readouterr().out.partition("\nexamples:")[0])),
        key=len,
    )
    assert exit_of(parse, [options[-1][:-1]]) == 2
    told = capsys.readouterr().err
    assert f"unknown option {options[-1][:-1]} (did you mean --" in told
    assert len(told.splitlines()) == 2, "the error, and where the help is"


@each([path for path in SHELL if path.name not in PASS_ON])
def test_a_shell_command_refuses_what_it_does_not_know(path: Path) -> None:
    result = subprocess.run(
        ["bash", str(path), "--no-such-flag"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "unknown argument" in result.stderr and "--no-such-flag" in result.stderr


@each(PYTHON)
def test_errors_are_told_by_run_main(path: Path) -> None:
    """One line, status 1, traceback with --debug, status 130 after Ctrl-C: tests/utils/test_cli.py looks at it."""
    tail = path.read_text(encoding="utf-8").partition('\nif __name__ == "__main__":')[2]
    assert "sys.exit(run_main(main))" in tail


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train.py --nosave --save-period 2", "--save-period .* --nosave"),
        ("train.py --notest --patience 5", "--patience .* --notest"),
        ("train.py --logger none mlflow", "--logger none excludes"),
        ("train.py --logger wand", "wandb"),
        ("train.py --slicer none --max-patches 3", "--max-patches .* --slicer none"),
        ("test.py --slicer none --max-patches 3", "--max-patches .* --slicer none"),
        ("detect.py --slicer none --max-patches 3", "--max-patches .* --slicer none"),
        ("detect.py --save-conf", "--save-txt"),
        ("test.py --save-conf", "--save-txt"),
        ("test.py --task measure --save-json", "--save-json .* --task measure"),
        ("test.py --task speed --official", "--official .* --task speed"),
        ("test.py --task measure --analyse", "--analyse .* --task measure"),
    ],
)
def test_contradictions_are_refused(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    script, *options = line.split()
    assert exit_of(parser_of(script), options) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "line",
    [
        "train.py --resume last.pt --device cpu --workers 0 --debug",
        "train.py --resume --project elsewhere",
        "train.py --notest",
        "train.py --slicer none --max-patches 0",
        "test.py --official --save-conf",
    ],
)
def test_what_goes_together_is_taken(line: str) -> None:
    script, *options = line.split()
    parser_of(script)(options)


def test_a_failure_of_a_real_command_is_one_line_and_a_traceback_with_debug(root: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "evaluate.visdrone", "--annotations", "nowhere", "--results", "nowhere"]
    for debug in (False, True):
        done = subprocess.run(
            line + ["--debug"] * debug, cwd=root, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: ") and "nowhere" in last
        assert ("Traceback" in done.stderr) == debug
        assert debug or len(done.stderr.splitlines()) == 1
