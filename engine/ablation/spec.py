"""What an ablation is: variants of one training and of one test, as a YAML file says, and their command lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from utils.config import DatasetConfig, HypConfig
from utils.splits import resolve_split
from utils.test_cli import build_test_parser
from utils.train_cli import given_options
from utils.typed_data import ConfigError, config_from_dict, config_to_dict, load_config

Option = bool | int | float | str | list[str]
"""Value of an option of train.py or test.py; true: the flag alone, false: not given."""
SIZE = "img-size"
OWN = ("hyp", "project", "name", "exist_ok", "resume", "auto_resume", "config")
"""Options of train.py that an ablation sets itself."""
OWN_TEST = ("weights", "project", "name", "exist_ok", "task")


@dataclass(frozen=True)
class Variant:
    """One row of the table: what is different from the ablation's own options.

    Attributes:
        note: a word about it, for the table.
        train, hyp, test: options of train.py, hyper-parameters, options of test.py.
        trained: test the weights of that variant's training; there is none of its own.
        weights: test this file; there is no training.
    """

    note: str = ""
    train: dict[str, Option] = field(default_factory=dict)
    hyp: dict[str, Option] = field(default_factory=dict)
    test: dict[str, Option] = field(default_factory=dict)
    trained: str = ""
    weights: str = ""


@dataclass(frozen=True)
class Ablation:
    """A file of data/ablations.

    Attributes:
        title, about: of the page.
        base: hyper-parameters that all trainings share but for their ``hyp``.
        train, hyp, test: as in `Variant`, of all.
        minutes: what a training may take; its number of epochs is chosen beforehand, by the time of a short one. None:
            ``epochs`` is among the options.
        occupancy: test every model at the heatmap threshold at which its patches cover this share of the map; None: at
            the threshold it has.
        seeds: every training is made with each of them, and the table has means.
        variants: by name; the first is the one that others are compared with.
    """

    title: str
    variants: dict[str, Variant]
    about: str = ""
    base: str = "data/hyps/default.yaml"
    train: dict[str, Option] = field(default_factory=dict)
    hyp: dict[str, Option] = field(default_factory=dict)
    test: dict[str, Option] = field(default_factory=dict)
    minutes: float | None = None
    occupancy: float | None = None
    seeds: list[int] = field(default_factory=lambda: [0])


@dataclass(frozen=True)
class Run:
    """A variant with a seed.

    Attributes:
        variant, seed: which.
        folder: of everything it leaves.
        trained: folder of the run whose weights it tests, its own one or another's; None: ``spec.weights`` are tested.
    """

    variant: str
    seed: int
    folder: Path
    trained: Path | None
    spec: Variant

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.name

    @property
    def trains(self) -> bool:
        """Whether it has a training of its own."""
        return self.trained == self.folder

    @property
    def weights(self) -> Path:
        """What is tested."""
        return Path(self.spec.weights) if self.trained is None else self.trained / "train/weights/best.pt"


def read_ablation(path: Path) -> Ablation:
    """Read and check a file.

    Raises:
        ConfigError: a key, an option or a hyper-parameter that does not exist, or variants that contradict themselves.
    """
    spec = load_config(Ablation, path)
    if not spec.variants or not spec.seeds:
        raise ConfigError(f"{path}: expected at least one variant and one seed")
    if spec.occupancy is not None and not 0 < spec.occupancy < 1:
        raise ConfigError(f"{path}: occupancy is {spec.occupancy}; expected a share of the map, 0 to 1")
    for name, variant in spec.variants.items():
        _check_variant(spec, name, variant, f"{path}: variants.{name}")
    return spec


def runs_of(spec: Ablation, folder: Path) -> list[Run]:
    """All runs, variant by variant, in folders below the ablation's."""
    found = []
    for name, variant in spec.variants.items():
        seeds = [0] if variant.weights else spec.seeds
        for seed in seeds:
            suffix = f"-seed{seed}" if len(seeds) > 1 else ""
            own = folder / f"{name}{suffix}"
            source = None if variant.weights else folder / f"{variant.trained or name}{suffix}"
            found.append(Run(name, seed, own, source, variant))
    return found


def resized(spec: Ablation, img_size: int) -> Ablation:
    """The same with trainings at this image size, and every other size of the file in proportion, in multiples of 32.

    Raises:
        ConfigError: the file has no single number as the trainings' img-size.
    """
    given = spec.train.get(SIZE)
    if not isinstance(given, int):
        raise ConfigError(f"train.{SIZE} is {given!r}; expected a number, or leave --img-size out")

    def scaled(options: dict[str, Option]) -> dict[str, Option]:
        size = options.get(SIZE)
        return (
            options | {SIZE: round(size * img_size / given / 32) * 32} if isinstance(size, int) else options
        )

    variants = {
        name: replace(one, train=scaled(one.train), test=scaled(one.test))
        for name, one in spec.variants.items()
    }
    return replace(spec, train=scaled(spec.train), test=scaled(spec.test), variants=variants)


def hyper_parameters(spec: Ablation, variant: Variant) -> HypConfig:
    """All of a variant's training."""
    base = config_to_dict(load_config(HypConfig, spec.base))
    return config_from_dict(HypConfig, base | spec.hyp | variant.hyp, "hyp")


def words_for_training(spec: Ablation, run: Run, epochs: int | None = None) -> list[str]:
    """What stands behind ``train.py``; the run goes on where it was stopped."""
    options: dict[str, Option] = {"seed": run.seed, **spec.train, **run.spec.train}
    if epochs is not None:
        options["epochs"] = epochs
    own = ["--hyp", str(run.folder / "hyp.yaml"), "--project", str(run.folder), "--name", "train"]
    return [*words_of(options), *own, "--auto-resume"]


def words_for_testing(spec: Ablation, run: Run, threshold: float | None) -> list[str]:
    """What stands behind ``test.py``."""
    options: dict[str, Option] = {**spec.test, **run.spec.test}
    if threshold is not None:
        options["heatmap-thres"] = round(threshold, 5)
    own = ["--weights", str(run.weights), "--project", str(run.folder), "--name", "test", "--exist-ok"]
    return [*words_of(options), *own]


def words_of(options: Mapping[str, Option]) -> list[str]:
    """Options as a command line."""
    words: list[str] = []
    for name, value in options.items():
        if value is False:
            continue
        words.append(f"--{name}")
        if isinstance(value, list):
            words += [str(one) for one in value]
        elif value is not True:
            words.append(str(value))
    return words


def training_images(spec: Ablation, variant: Variant) -> list[Path]:
    """Images of a variant's training set."""
    data = str({**spec.train, **variant.train}["data"])
    return list(resolve_split(load_config(DatasetConfig, data), data, "train"))


def _check_variant(spec: Ablation, name: str, variant: Variant, where: str) -> None:
    """Refuse what cannot be run, before anything runs."""
    if variant.trained and variant.weights:
        raise ConfigError(f"{where}: trained and weights both say what is tested: leave one out")
    if variant.trained or variant.weights:
        if variant.train or variant.hyp:
            raise ConfigError(f"{where}: has no training of its own: leave train and hyp out")
        source = spec.variants.get(variant.trained)
        if variant.trained and (source is None or source.trained or source.weights):
            raise ConfigError(f"{where}: trained is {variant.trained!r}; expected a variant with a training")
    else:
        options = {**spec.train, **variant.train}
        _refuse(given_options(words_of(options)), OWN, where)
        if "data" not in options:
            raise ConfigError(f"{where}: expected data among the options of train")
        if ("epochs" in options) == (spec.minutes is not None):
            raise ConfigError(f"{where}: expected either epochs among the options of train, or minutes")
        try:
            hyper_parameters(spec, variant)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    parser = build_test_parser()
    parser.parse_args(words_of({**spec.test, **variant.test}))
    _refuse([word.lstrip("-").replace("-", "_") for word in parser.given], OWN_TEST, where)


def _refuse(given: Sequence[str] | Mapping[str, object], own: Sequence[str], where: str) -> None:
    wrong = sorted(set(given) & set(own))
    if wrong:
        raise ConfigError(f"{where}: {', '.join(wrong)}: an ablation sets that itself; leave it out")
