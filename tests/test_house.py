"""The house rules that no other tool checks: what may be imported, what must not be written, how big things are.

Ruff, mypy and import-linter check theirs in scripts/run_tests.sh; what is here also holds for the flat files
(train.py, test.py, detect.py, scripts/*), which import-linter cannot look at.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "utils", "evaluate", "engine", "deploy")
COMMANDS = ("train", "test", "detect", "export")
LOCAL = {*PACKAGES, *COMMANDS, "scripts"}
MAY_IMPORT = {
    "utils": {"utils"},
    "evaluate": {"utils", "evaluate"},
    "models": {"utils", "models"},
    "deploy": {"deploy"},
    "engine": {*PACKAGES},
    "command": {*PACKAGES},
    "script": {*PACKAGES},
    "hubconf": {*PACKAGES},
}
HEAVY = {
    "faster_coco_eval", "gradio", "matplotlib", "mlflow", "onnx", "onnxruntime", "openvino", "pandas", "rasterio",
    "sahi", "segment_anything", "supervision", "tensorboard", "thop", "wandb",
}  # fmt: skip
BANNED_PACKAGES = {"ultralytics", "ultralytics-thop", "albumentations", "albumentationsx", "yolov5", "mmyolo"}
PERMISSIVE = {
    "torch", "torchvision", "numpy", "opencv-python", "pyyaml", "matplotlib", "tqdm", "segment-anything", "thop",
    "scipy", "faster-coco-eval", "tensorboard", "rasterio", "safetensors", "onnx", "onnxruntime", "onnxscript", "openvino",
    "pandas", "supervision", "sahi", "optuna", "gradio", "mlflow-skinny", "wandb", "mkdocs", "mkdocs-material",
    "pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff", "mypy", "import-linter", "types-pyyaml", "types-tqdm",
}  # fmt: skip
FUNCTION_LINES = 60
FILE_LINES = 400
TEST_FILE_LINES = 600


def flat_files() -> list[Path]:
    """The command lines that exist."""
    return [path for name in COMMANDS if (path := ROOT / f"{name}.py").exists()]


def source_files() -> list[Path]:
    """Every Python file of the project except its tests."""
    folders = [path for folder in (*PACKAGES, "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [*flat_files(), ROOT / "hubconf.py", *folders]


def test_files() -> list[Path]:
    """Every Python file below tests/."""
    return sorted((ROOT / "tests").rglob("*.py"))


test_files.__test__ = False  # type: ignore[attr-defined]


def name_of(path: Path) -> str:
    """The path below the project, as test id and in messages."""
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """models/backbones/base.py → models.backbones.base; a package's __init__.py is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def each(paths: list[Path]) -> pytest.MarkDecorator:
    """Parametrise a test over files."""
    return pytest.mark.parametrize("path", paths, ids=name_of)


# --- imports -------------------------------------------------------------------------------------------------


def test_every_module_is_imported_without_a_word_and_without_heavy_packages() -> None:
    """Nothing happens at import, and packages that few commands need are loaded by those commands only."""
    adapters = ROOT / "engine" / "integrations"  # each is for users of another package, and imports it
    modules = [
        module_of(path) for path in source_files() if path.parent != adapters or path.stem == "__init__"
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    file = getattr(sys.modules[name], '__file__', None)\n"
        f"    if file is None or not file.startswith({str(ROOT)!r}):\n"
        "        sys.exit(f'{name} is not ours but {file}')\n"
        f"heavy = sorted({HEAVY!r} & set(sys.modules))\n"
        "sys.exit(f'imported at the top of a module: {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def local_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, top-level name) of every import of one of the project's own modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if node.level == 0 else []
        else:
            continue
        yield from ((node.lineno, top) for name in names if (top := name.split(".")[0]) in LOCAL)


def script_names() -> set[str]:
    """Importable names of the scripts beside each other: no script may import another."""
    return {path.stem for path in (ROOT / "scripts").glob("*.py")}


def room_of(path: Path) -> str:
    """Which rule of MAY_IMPORT a file is under."""
    top = path.relative_to(ROOT).parts[0]
    if top == "scripts":
        return "script"
    return "command" if top.removesuffix(".py") in COMMANDS else top.removesuffix(".py")


@each(source_files())
def test_imports_go_downwards(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    allowed = MAY_IMPORT[room_of(path)]
    wrong = [f"line {line}: {top}" for line, top in local_imports(tree) if top not in allowed]
    assert not wrong, f"{name_of(path)} ({room_of(path)}) may import {sorted(allowed)} only"
    if room_of(path) == "script":
        imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & script_names(), "a script imports another"


# --- what must not be written ----------------------------------------------------------------------------------


def call_name(node: ast.Call) -> str:
    """``a.b.c`` of a call ``a.b.c(…)``; empty for calls of other expressions."""
    return ast.unparse(node.func) if isinstance(node.func, (ast.Name, ast.Attribute)) else ""


def wrong_call(node: ast.Call) -> str | None:
    """What is wrong with a call, if anything."""
    name = call_name(node)
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in {
        "eval",
        "exec",
        "compile",
        "__import__",
        "os.system",
        "os.popen",
        "yaml.load",
        "site.addsitedir",
    }:
        return name
    if name.startswith(("pickle.", "marshal.", "dill.", "joblib.")) or name == "torch.hub.load":
        return name
    for argument, value in keywords.items():
        if isinstance(value, ast.Constant) and (argument, value.value) in {
            ("shell", True),
            ("weights_only", False),
        }:
            return f"{argument}={value.value}"
        if argument == "allow_pickle" and not (isinstance(value, ast.Constant) and value.value is False):
            return "allow_pickle"
    if name == "torch.load":
        value = keywords.get("weights_only")
        if not (isinstance(value, ast.Constant) and value.value is True):
            return "torch.load without weights_only=True"
    return None


def wrong_node(node: ast.AST) -> str | None:
    """What is wrong with a node of the syntax tree, if anything."""
    if isinstance(node, ast.Call):
        return wrong_call(node)
    if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
        return "sys.path"
    if isinstance(node, ast.ExceptHandler) and node.type is None:
        return "bare except"
    if isinstance(node, ast.ImportFrom):
        if any(alias.name == "*" for alias in node.names):
            return "star import"
        if node.module == "sys" and any(alias.name == "path" for alias in node.names):
            return "sys.path"
        if node.module in {"pickle", "dill", "joblib", "marshal"}:
            return f"from {node.module} import"
    if (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.match(r"/(tmp|work)(/|$)", node.value)
    ):
        return f"hard-coded path {node.value}"
    return None


def exits_below_main(tree: ast.Module) -> Iterator[int]:
    """Lines of sys.exit, exit, quit and SystemExit outside a function called main and ``if __name__ …``."""
    allowed: set[ast.AST] = set()
    for node in ast.walk(tree):
        is_main = isinstance(node, ast.FunctionDef) and node.name == "main"
        if is_main or (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)):
            allowed.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in allowed:
            continue
        if isinstance(node, ast.Call) and call_name(node) in {"sys.exit", "exit", "quit", "SystemExit"}:
            yield node.lineno


def forbidden(source: str) -> list[str]:
    """``line N: what`` for everything in a source text that the house forbids."""
    tree = ast.parse(source)
    found = [(getattr(n, "lineno", 0), what) for n in ast.walk(tree) if (what := wrong_node(n)) is not None]
    found += [(line, "leaves the program below main") for line in exits_below_main(tree)]
    return [f"line {line}: {what}" for line, what in sorted(found)]


@each(source_files())
def test_nothing_forbidden_is_written(path: Path) -> None:
    assert forbidden(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(code)",
        "import sys\nsys.path.insert(0, '..')",
        "from sys import path",
        "try:\n    f()\nexcept:\n    g()",
        "from models import *",
        "torch.load(f, weights_only=False)",
        "torch.load(f)",
        "pickle.load(f)",
        "from pickle import load",
        "subprocess.run('ls', shell=True)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
        "open('/tmp/x')",
        "def helper():\n    sys.exit(1)",
        "def helper():\n    raise SystemExit(1)",
    ],
)
def test_the_search_finds_what_is_forbidden(source: str) -> None:
    assert len(forbidden(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "torch.load(f, weights_only=True)",
        "subprocess.run(['ls'], shell=False)",
        "np.load(f, allow_pickle=False)",
        "def main():\n    sys.exit(1)",
        "if __name__ == '__main__':\n    sys.exit(main())",
        "re.compile('a')",
        "try:\n    f()\nexcept OSError:\n    g()",
        "os.path.join('a', 'b')",
    ],
)
def test_the_search_leaves_the_rest_alone(source: str) -> None:
    assert forbidden(source) == []


@each([*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"])
def test_shell_scripts(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert text.startswith("#!/usr/bin/env bash\n")
    assert re.search(r"^set -[eu]*u[eo]* ?(-o )?pipefail|^set -[eu]+o pipefail", code, re.MULTILINE), (
        "set -uo pipefail"
    )
    assert not re.search(r"(^|[;&|]\s*)eval\s", code, re.MULTILINE), "eval"
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def text_files() -> list[Path]:
    """Everything a reader may open, tests included; not what runs and data preparation leave behind."""
    suffixes = {".py", ".sh", ".md", ".yaml", ".toml", ".cff", ".txt", ""}
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.suffix in suffixes and path.is_file()]


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    pattern = re.compile("(?<![A-Za-z0-9_.*/])/(?:" + "work|root|home/[a-z]+|Users/[a-z]+" + r")/[A-Za-z.]")
    found = [
        name_of(p) for p in text_files() if pattern.search(p.read_text(encoding="utf-8", errors="replace"))
    ]
    assert found == []


# --- sizes -----------------------------------------------------------------------------------------------------


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring not counted."""
    start = node.lineno
    first = node.body[0]
    docstring = ast.get_docstring(node, clean=False) is not None
    skipped = (first.end_lineno or 0) - first.lineno + 1 if docstring else 0
    return (node.end_lineno or start) - start + 1 - skipped


@each([*source_files(), *test_files()])
def test_functions_and_files_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    limit = TEST_FILE_LINES if path.is_relative_to(ROOT / "tests") else FILE_LINES
    assert len(text.splitlines()) <= limit, f"{name_of(path)}: split it (at most {limit} lines)"
    functions = [
        n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    long = [f"{node.name}: {lines}" for node in functions if (lines := body_lines(node)) > FUNCTION_LINES]
    assert not long, f"functions of more than {FUNCTION_LINES} lines in {name_of(path)}"


# --- command lines -----------------------------------------------------------------------------------------------


def command_lines() -> list[Path]:
    """Everything that is started by hand."""
    commands = [path for name in COMMANDS if (path := ROOT / f"{name}.py").exists()]
    scripts = [path for path in sorted((ROOT / "scripts").iterdir()) if path.suffix in {".py", ".sh"}]
    return [*commands, *(path for path in scripts if not path.name.startswith("_"))]


@pytest.fixture(scope="module")
def help_texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Status, output and errors of ``--help`` of each command, from a folder elsewhere, with no PYTHONPATH."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"COLUMNS": "160", "OMP_NUM_THREADS": "1"}

    def start(*words: object) -> subprocess.CompletedProcess[str]:
        line = list(map(str, words))
        return subprocess.run(
            line, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
        )

    paths = command_lines()
    asked = start(
        sys.executable, ROOT / "tests" / "help_worker.py", *(path for path in paths if path.suffix == ".py")
    )
    assert asked.returncode == 0, asked.stderr
    texts = {path: tuple(found) for path, found in json.loads(asked.stdout).items()}
    for path in paths:
        if path.suffix == ".sh":
            done = start("bash", path, "--help")
            texts[str(path)] = (done.returncode, done.stdout, done.stderr)
    return texts


def options_without_help(text: str) -> list[str]:
    """Options and positional arguments in argparse's help that have no text of their own."""
    options = text.partition("\n\n")[2].partition("\nexamples:\n")[0]
    entries = re.split(r"^ {2}(?=\S)", options, flags=re.MULTILINE)[1:]
    bare = []
    for entry in entries:
        first, _, rest = entry.partition("\n")
        name, _, beside = first.partition("  ")
        below = rest.split("\n", maxsplit=1)[0]
        if not beside.strip() and not re.match(r" {10,}\S", below):
            bare.append(name)
    return bare


@pytest.mark.timeout(600)
@each(command_lines())
def test_help_works_anywhere_and_explains_every_flag(
    path: Path, help_texts: dict[str, tuple[int, str, str]]
) -> None:
    status, printed, errors = help_texts[str(path)]
    assert status == 0, errors
    assert len(printed.split()) >= 10
    if path.suffix == ".py":
        assert "usage:" in printed
        assert options_without_help(printed) == []


def test_a_flag_without_help_is_noticed() -> None:
    text = (
        "usage: x [-h]\n\noptions:\n  -h, --help  show this\n  --mute\n  --long-name-of-it VALUE\n"
        "              explained below\n  --last X\n\nThe end.\n"
    )
    assert options_without_help(text) == ["--mute", "--last X"]


# --- licences ----------------------------------------------------------------------------------------------------


def required_packages() -> list[str]:
    """Normalised names in the requirements files."""
    names = []
    for file in ("requirements.txt", "requirements-dev.txt", "requirements-optional.txt"):
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
            if match := re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line.strip()):
                names.append(re.sub(r"[-_.]+", "-", match.group()).lower())
    return names


def test_licence_files() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert len(licence.split()) > 1500, "the full text"
    assert "Apache License" in (ROOT / "NOTICE").read_text(encoding="utf-8")


def test_citation() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == "Apache-2.0"
    paper = citation["preferred-citation"]
    assert paper["title"].startswith("ESOD")
    assert paper["authors"][0] == {"family-names": "Liu", "given-names": "Kai"}
    assert paper["identifiers"][0]["value"] == "arXiv:2407.16424"
    version = re.search(
        r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert version is not None
    assert citation["version"] == version.group(1)


def test_requirements_are_permissive_and_explained() -> None:
    names = required_packages()
    assert len(names) > 10
    assert not set(names) & BANNED_PACKAGES
    assert set(names) <= PERMISSIVE, (
        "a new dependency: check its licence, then name it here and in third_party"
    )
    explained = (ROOT / "third_party" / "README.md").read_text(encoding="utf-8").lower()
    assert [n for n in names if not n.startswith("types-") and n not in explained] == []


def with_dependencies(names: list[str]) -> set[str]:
    """Installed packages that the named ones bring along, themselves included."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        if name not in seen:
            seen.add(name)
            needed = [line for line in requires if "extra ==" not in line]
            waiting += [match.group() for line in needed if (match := re.match(r"[\w.-]+", line))]
    return seen


def test_no_installed_dependency_is_agpl() -> None:
    found = with_dependencies(required_packages())
    assert "torch" in found
    licences = {
        name: " ".join(
            [
                *(metadata.metadata(name).get_all("License-Expression") or []),
                *(metadata.metadata(name).get_all("Classifier") or []),
                *((metadata.metadata(name).get_all("License") or [""])[0].splitlines()[:1]),
            ]
        )
        for name in sorted(found)
    }
    assert [name for name, licence in licences.items() if re.search("AGPL|Affero", licence)] == []
    assert not found & BANNED_PACKAGES
