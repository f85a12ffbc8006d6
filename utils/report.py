"""A run as one self-contained HTML page, ``report.html``: made from the files of its folder, to read anywhere.

Which sections there are depends on what the folder holds: a training, an accuracy test, a measurement, or several of
these. The page fetches nothing and runs no script.
"""

from __future__ import annotations

from pathlib import Path

from utils.files import write_text
from utils.logger import get_logger
from utils.page import document, element
from utils.report_accuracy import accuracy_sections, cost_sections
from utils.report_data import RunFiles, flat, part, read_run
from utils.report_training import training_sections

REPORT_FILE = "report.html"


def write_report(folder: str | Path) -> Path:
    """Write the report of a run folder; returns the file.

    Raises:
        ReportError: there is nothing to report on, or a file of the run is damaged.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    text = render_report(read_run(folder))
    path = folder / REPORT_FILE
    write_text(path, text)
    return path


def report_finished_run(folder: Path) -> None:
    """Write the report of a run that has written everything else, and say where it is; a failure is a warning only."""
    log = get_logger()
    try:
        log.info(f"report: {write_report(folder)}")
    except Exception as error:  # noqa: BLE001 - the run is complete, whatever is wrong with its report
        log.warning(f"no report of {folder} ({type(error).__name__}: {error}); its results are complete")


def render_report(run: RunFiles) -> str:
    """The page of a run."""
    kinds = [
        name
        for name, present in (("Training", run.results), ("Test", run.metrics), ("Cost", run.cost))
        if present
    ]
    title = f"{' and '.join(kinds)}: {run.folder.name}"
    body = [
        element("h1", title),
        element("p", _subtitle(run), class_="soft"),
        training_sections(run),
        accuracy_sections(run),
        cost_sections(run),
    ]
    return document(title, body)


def _subtitle(run: RunFiles) -> str:
    """What ran on what, where and at which commit, as far as the files say."""
    train = part(run.config, "train")
    options = part(run.metrics, "options") or part(run.cost, "options")
    source = part(part(run.config, "provenance"), "environment") or part(run.metrics, "environment")
    environment = source or part(run.cost, "environment")
    chosen = {**dict(flat(train)), **dict(flat(options))}
    parts = [chosen.get("weights", ""), chosen.get("data", "")]
    if "img_size" in chosen:
        parts.append(f"image size {chosen['img_size']}")
    parts.append(str(environment.get("gpu") or environment.get("cpu") or ""))
    commit = str(environment.get("git_commit") or "")[:10]
    if commit:
        parts.append(f"commit {commit}{' with changes' if environment.get('git_dirty') else ''}")
    return " · ".join(text for text in parts if text)
