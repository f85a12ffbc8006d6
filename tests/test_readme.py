"""The documents: commands that the parsers accept, files and links that exist; run for real with ESOD_FULL=1."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from utils.config import DatasetConfig
from utils.detect_cli import parse_detect_options
from utils.export_cli import parse_export_options
from utils.test_cli import parse_test_options
from utils.train_cli import parse_train_options
from utils.typed_data import config_from_dict

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README_LINES = 250
SET_UP = "bash scripts/setup_env.sh"
QUICKSTART = "bash scripts/quickstart.sh"
ACTIVATE = "source .venv/bin/activate"
MADE_BY_QUICKSTART = ("sample/", "runs/quickstart/", "data/images/sample.txt")
INPUTS = ("--data", "--cfg", "--weights", "--hyp", "--source", "--root", "--image")
"""Options that name something to read."""

Parse = Callable[[Sequence[str]], object]


# --- reading the documents -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the line of its fence, its text."""

    language: str
    line: int
    text: str

    def commands(self) -> list[Command]:
        """Its command lines, one a line or joined by a backslash or &&, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        parts = [part for line in lines for part in line.split("&&")]
        words = [shlex.split(part, comments=True) for part in parts]
        return [Command(self.line, tuple(command)) for command in words if command]


@dataclass(frozen=True)
class Command:
    """The words of one command line."""

    line: int
    words: tuple[str, ...]

    @property
    def variables(self) -> list[str]:
        """Names of the variables set in front."""
        return [match[1] for word in self.words if (match := re.match(r"([A-Z_]+)=", word))]

    @property
    def bare(self) -> tuple[str, ...]:
        """The words behind the variables."""
        return self.words[len(self.variables) :]

    def __str__(self) -> str:
        return f"README.md:{self.line}: {' '.join(self.words)}"


def blocks_of(text: str) -> list[Block]:
    """All fenced blocks of a Markdown text."""
    found, language, start, lines = [], None, 0, []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith("```"):
            lines.append(line)
        elif language is None:
            language, start, lines = line.removeprefix("```").strip(), number, []
        else:
            found.append(Block(language, start, "\n".join(lines)))
            language = None
    assert language is None, f"the block of line {start} has no end"
    return found


def blocks(language: str) -> list[Block]:
    """The README's blocks of a language."""
    return [block for block in blocks_of(README.read_text(encoding="utf-8")) if block.language == language]


def commands(language: str) -> list[Command]:
    """The README's command lines in blocks of a language."""
    return [command for block in blocks(language) for command in block.commands()]


# --- checking a command --------------------------------------------------------------------------------------


def parser_of(script: str) -> Parse:
    """What checks the options of a Python command: its own parser."""
    known: dict[str, Parse] = {
        "train.py": parse_train_options,
        "test.py": parse_test_options,
        "detect.py": parse_detect_options,
        "export.py": parse_export_options,
    }
    if script in known:
        return known[script]
    name = "readme_" + Path(script).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    parse: Parse = module.build_parser().parse_args
    return parse


def check_python(script: str, options: Sequence[str]) -> str | None:
    """What is wrong with ``python SCRIPT OPTIONS``, if anything."""
    if not (ROOT / script).is_file():
        return f"there is no {script}"
    own, passed_on = list(options), None
    if "--" in own:  # what stands behind it goes to train.py
        split = own.index("--")
        own, passed_on = own[:split], own[split + 1 :]
    try:
        parser_of(script)(own)
        if passed_on is not None:
            parser_of("train.py")(passed_on)
    except SystemExit as error:
        if error.code:
            return f"{script} does not accept: {' '.join(options)}"
    return None


def check_bash(script: str, options: Sequence[str], variables: Sequence[str]) -> str | None:
    """What is wrong with ``VARIABLES bash SCRIPT OPTIONS``, if anything."""
    path = ROOT / script
    if not path.is_file():
        return f"there is no {script}"
    text = path.read_text(encoding="utf-8")
    unknown = [name for name in variables if not re.search(rf"\$\{{{name}\b", text)]
    if unknown:
        return f"{script} does not read {', '.join(unknown)}"
    if path.name == "train.sh":
        return check_python("train.py", options)
    missing = [
        option for option in options if not re.search(rf"^ +.*{re.escape(option)}\b.*\)", text, re.MULTILINE)
    ]
    return f"{script} does not know {', '.join(missing)}" if missing else None


def wrong(command: Command) -> str | None:
    """What is wrong with a command, if anything; commands of git and the shell are left alone."""
    program, *rest = command.bare
    if rest[:1] == ["-m"]:
        rest = [rest[1].replace(".", "/") + ".py", *rest[2:]]
    if program == "python":
        return check_python(rest[0], rest[1:])
    if program == "bash":
        return check_bash(rest[0].removeprefix("./"), rest[1:], command.variables)
    return None if program in {"git", "cd", "source"} else f"unexpected program {program}"


def inputs_of(command: Command) -> Iterator[str]:
    """Files that a command reads, as far as its words say."""
    for name, value in zip(command.bare, command.bare[1:], strict=False):
        if name in INPUTS:
            yield value
    yield from (word.removeprefix("WEIGHTS=") for word in command.words if word.startswith("WEIGHTS="))


@pytest.mark.parametrize("command", [*commands("bash"), *commands("console")], ids=str)
def test_commands_are_accepted_by_their_parsers(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    problem = wrong(command)
    assert problem is None, f"{command}\n{problem}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("command", commands("bash"), ids=str)
def test_commands_read_what_is_there(command: Command) -> None:
    """Files of the repository, and behind the quickstart also what it makes."""
    (quickstart,) = [block.line for block in blocks("bash") if QUICKSTART in block.text]
    made = MADE_BY_QUICKSTART if command.line > quickstart else ()
    missing = [
        name
        for name in inputs_of(command)
        if not name.startswith(made) and name != "none" and not (ROOT / name).exists()
    ]
    assert not missing, str(command)


@pytest.mark.parametrize(
    "line",
    [
        "python nothing.py",
        "python test.py --task study",
        "python test.py --no-such-flag",
        "python detect.py --save-conf",
        "python scripts/data_prepare.py --dataset Nowhere",
        "python train.py --img-size 100",
        "bash scripts/nothing.sh",
        "bash scripts/train.sh --no-such-flag",
        "NO_SUCH=1 bash scripts/train.sh",
        "bash scripts/run_tests.sh --no-such-flag",
        "rm README.md",
    ],
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    (command,) = Block("bash", 1, line).commands()
    assert wrong(command) is not None


def test_blocks_and_commands_are_found() -> None:
    text = "a\n```bash\nA=1 bash x.sh \\\n  --b  # c\ncd d && python e.py\n```\n```yaml\nf: 1\n```\n"
    bash, data = blocks_of(text)
    assert [command.words for command in bash.commands()] == [
        ("A=1", "bash", "x.sh", "--b"), ("cd", "d"), ("python", "e.py"),
    ]  # fmt: skip
    assert bash.commands()[0].bare == ("bash", "x.sh", "--b")
    assert (data.language, data.line, data.text) == ("yaml", 7, "f: 1")
    assert len(commands("bash")) >= 6 and len(commands("console")) >= 8
    assert {block.language for block in blocks_of(README.read_text(encoding="utf-8"))} <= {
        "bash", "console", "python", "yaml", "bibtex",
    }  # fmt: skip


# --- the other blocks, links and sizes -----------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"line {block.line}")
def test_python_imports_exist(block: Block) -> None:
    imported = [node for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.ImportFrom)]
    assert imported
    for node in imported:
        module = importlib.import_module(node.module or "")
        assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: f"line {block.line}")
def test_the_dataset_file_is_a_valid_one(block: Block) -> None:
    config = config_from_dict(DatasetConfig, yaml.safe_load(block.text), "README.md")
    assert config.nc == len(config.names) > 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = [match[1].split("#")[0] for match in re.finditer(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (document.parent / target).exists()] == []


def test_named_code_exists() -> None:
    """Every ``file.py: name, name`` of the documents is a file that defines these names."""
    pattern = re.compile(
        r"`((?:models|utils|engine|evaluate|deploy)/[\w/]+\.py): ([^`]+)`((?:, `[A-Za-z_.]+`)*)"
    )
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    found = list(pattern.finditer(text))
    assert len(found) > 15
    for match in found:
        source = (ROOT / match[1]).read_text(encoding="utf-8")
        names = [match[2], *re.findall(r"`([A-Za-z_.]+)`", match[3])]
        for name in (part for text in names for part in text.split(".")):
            assert re.search(rf"^\s*(?:def|class) {name}\b", source, re.MULTILINE), f"{match[1]}: {name}"


def test_every_module_is_in_the_picture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = [
        path
        for folder in ("engine", "models", "utils", "evaluate", "deploy")
        for path in (ROOT / folder).glob("*.py")
    ]
    assert [path.stem for path in files if path.stem != "__init__" and f"`{path.stem}`" not in text] == []


def test_the_order_of_the_readme() -> None:
    """Sentence, picture, table, then what a reader wants next."""
    text = README.read_text(encoding="utf-8")
    head = text.partition("\n## ")[0]
    assert head.index("ESOD finds small objects") < head.index("![") < head.index("| what was measured |")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "Install", "Detect", "From Python", "Train on the sample", "Train on VisDrone", "Evaluate and measure",
        "Models", "Your own data", "Export", "Questions", "Citing and licence",
    ]  # fmt: skip


def test_the_readme_has_the_numbers_of_the_report(tmp_path: Path) -> None:
    """`python scripts/readme_table.py` would change nothing."""
    copy = tmp_path / "README.md"
    shutil.copyfile(README, copy)
    subprocess.run(
        [sys.executable, "scripts/readme_table.py", "--page", str(copy)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    assert copy.read_text(encoding="utf-8") == README.read_text(encoding="utf-8")


def test_the_readme_stays_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= README_LINES


# --- all of it, really ---------------------------------------------------------------------------------------


def copy_of_the_tree(target: Path) -> None:
    """The files that git knows or would add; a link out of the tree is somebody's own data."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        source, copy = ROOT / name, target / name
        if source.is_symlink() and not source.resolve().is_relative_to(ROOT):
            continue
        if source.is_symlink() or source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)


def environment_for(text: str) -> dict[str, str]:
    """This Python as the activated environment; what does its own set-up is told to take it as it is."""
    steered = {
        "ESOD_VENV",
        "ESOD_PYTHON",
        "PYTHONPATH",
        "EPOCHS",
        "IMAGE_SIZE",
        "BATCH_SIZE",
        "DEVICE",
        "WORKERS",
    }
    environment = {key: value for key, value in os.environ.items() if key not in steered}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if QUICKSTART in text or SET_UP in text:
        environment |= {"ESOD_VENV": "none", "ESOD_PYTHON": sys.executable}
    return environment


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif("ESOD_FULL" not in os.environ, reason="takes a quarter of an hour: ESOD_FULL=1 runs it")
def test_every_command_runs(tmp_path: Path) -> None:
    """What a reader copies, block after block, on a fresh checkout."""
    tree = tmp_path / "tree with a space"
    copy_of_the_tree(tree)
    everything = blocks_of(README.read_text(encoding="utf-8"))
    runnable = [block for block in everything if block.language in {"bash", "python"}]
    assert SET_UP in runnable[0].text, "the first block makes the environment of the others"
    for block in runnable:
        text = block.text.replace(ACTIVATE, "")
        line = (
            ["bash", "-euo", "pipefail", "-c", text]
            if block.language == "bash"
            else [sys.executable, "-c", text]
        )
        result = subprocess.run(
            line, cwd=tree, env=environment_for(text), capture_output=True, text=True, check=False
        )
        told = result.stdout[-2000:] + result.stderr[-4000:]
        assert result.returncode == 0, f"README.md:{block.line}\n{block.text}\n{told}"
