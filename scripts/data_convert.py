"""Results of test.py in the layout that a dataset's official toolkit reads, and its protocol at once.

    python test.py --data data/visdrone.yaml --weights W --task test --save-txt --save-conf
    python scripts/data_convert.py --dataset VisDrone --pred runs/test/exp/labels --evaluate

Writes ``DET_results-<split>/*.txt`` (VisDrone), ``RES_DET/<name>/<sequence>.txt`` (UAVDT) or
``TinyPerson_results.json`` (TinyPerson) beside the label files' folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evaluate.arrays import EvaluationError
from evaluate.official import DATASETS, DEFAULT_SPLIT, OfficialSplit
from utils.cli import Parser, run_main
from utils.files import write_json
from utils.splits import read_list

EXAMPLES = ("python scripts/data_convert.py --dataset VisDrone --pred runs/test/exp/labels --evaluate",)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "Convert label files of test.py into the layout of an official toolkit; evaluate them.",
        examples=EXAMPLES,
    )
    names = {name.lower(): name for name in DATASETS}
    parser.add_argument(
        "--dataset",
        required=True,
        type=lambda text: names.get(text.lower(), text),
        choices=DATASETS,
        help="whose layout and protocol",
    )
    parser.add_argument(
        "--pred", type=Path, required=True, metavar="DIR", help="labels/ of test.py --save-txt --save-conf"
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="the prepared dataset (default: its name)")
    parser.add_argument("--split", help="which split was tested (default: test-dev of VisDrone, else test)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to (default: official/ beside the folder of --pred)"
    )
    parser.add_argument("--name", default="ESOD", help="name of the detector, a folder of UAVDT's layout")
    parser.add_argument("--evaluate", action="store_true", help="run the official protocol on the result")
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="with --evaluate: write all numbers, unrounded"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, convert, evaluate."""
    args = build_parser().parse_args(arguments)
    root: Path = args.root or Path(args.dataset)
    name = args.split or DEFAULT_SPLIT[args.dataset]
    split = OfficialSplit(args.dataset, root, name, split_images(root, name))
    if args.evaluate:
        split.check()
    written = split.convert(args.pred, args.output or args.pred.parent / "official", args.name)
    print(f"written: {written}")
    if args.evaluate:
        metrics = split.evaluate(written)
        if args.json is not None:
            write_json(args.json, metrics.to_dict())
        print("\n".join([metrics.table(), *split.notes()]))


def split_images(root: Path, name: str) -> list[Path]:
    """The images of a split from its list. Raises EvaluationError when the dataset is not prepared."""
    path = root / "split" / f"{name}.txt"
    if not path.is_file():
        raise EvaluationError(
            f"{path}: no such list; prepare the dataset (scripts/data_prepare.py), or give --root and --split"
        )
    return read_list(path, root)


if __name__ == "__main__":
    sys.exit(run_main(main))
