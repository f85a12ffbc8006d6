"""engine/benchmark: given heatmaps, variants, counting, and the figures derived from times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine.benchmark.bench import Bench, Case, Plan, cases_of, measure
from engine.benchmark.counting import gflops_by_stage, traffic
from engine.benchmark.derived import Figures, choosing, forward_ms
from engine.benchmark.heatmaps import HeatmapError, given_logits, kept_share, wanted_patches
from engine.benchmark.results import FORMAT, BenchmarkResult, CaseResult, MachineSpeed, StemCost
from engine.benchmark.targets import Part, verdicts
from engine.benchmark.variants import GivenHeatmap, lively_model, prepare, variants_of
from engine.modes import Mode
from models.esod import ESOD
from models.slicer import local_maxima
from models.summary import cost_at
from utils.config import HeadConfig, ModelConfig, SeekerConfig, SlicerConfig
from utils.typed_data import ConfigError

CPU = torch.device("cpu")
SIZE = (256, 320)
TINY = ModelConfig(depth=0.33, width=0.125, num_classes=3)
PLAN = Plan([SIZE], [1], [0.2], ["dense"], rounds=2, warmup=0, candidates=20, peaks=3, seed=0)


@pytest.fixture(scope="module")
def model() -> ESOD:
    return lively_model(TINY, seed=0)


# --- heatmaps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("map_hw", [(32, 40), (108, 192), (112, 192)])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.2, 0.5, 1.0])
def test_a_heatmap_has_objects_in_as_many_cells_as_wanted(map_hw: tuple[int, int], kept: float) -> None:
    logits = given_logits(TINY, 2, map_hw, kept, peaks=3, seed=1)
    assert logits.shape == (2, 1, *map_hw)
    count = wanted_patches(map_hw, 8, kept)
    peaks = local_maxima(logits.sigmoid(), 0.5)
    # Cells of the grid, counted place by place: sides are an eighth of the map's, rounded up to multiples of 4.
    side_y, side_x = (-(-side // 32) * 4 for side in map_hw)
    for image in peaks[:, 0]:
        cells = {(y // side_y, x // side_x) for y, x in image.nonzero().tolist()}
        assert len(cells) == count
    assert kept_share(map_hw, 8, count) == pytest.approx(
        kept, abs=0.51 * side_y * side_x / (map_hw[0] * map_hw[1])
    )
    if 0 < kept < 1:
        assert not torch.equal(logits[0], logits[1]), "all images have their objects in the same places"


@pytest.mark.parametrize("algorithm", ["grid", "greedy"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_model_keeps_the_given_share(algorithm: str, batch: int) -> None:
    config = replace(TINY, slicer=SlicerConfig(algorithm=algorithm, max_patches=1))  # type: ignore[arg-type]
    plan = replace(PLAN, batches=[batch], kept=[0.0, 0.1, 0.3])
    bench = Bench(lively_model(config, 0), [Mode("plain", folded=False)], plan, CPU)
    for kept, patches in ((0.0, 0), (0.1, 4), (0.3, 12)):
        case = Case("plain", SIZE, batch, kept, "dense")
        with torch.inference_mode():
            output = bench.forward(bench.prepared["plain"], case)
        assert output.patches.image_index.bincount(minlength=batch).tolist() == [patches] * batch
        area = (output.patches.xyxy_cell[:, 2:] - output.patches.xyxy_cell[:, :2]).prod(dim=1).sum()
        assert int(area) / (batch * 32 * 40) == pytest.approx(bench.describe(case).kept)


def test_a_budget_that_hides_the_share_is_told() -> None:
    config = replace(TINY, slicer=SlicerConfig(max_patches=2))
    with pytest.raises(HeatmapError, match=r"objects in 8 cells of the grid gives \[2\] patches"):
        given_logits(config, 1, (32, 40), 0.2, 3, 0)


# --- variants ------------------------------------------------------------------------------------


def test_names_of_variants() -> None:
    names = ["half", "plain", "half-compile", "fast"]
    assert [v.name for v in variants_of(names, CPU)] == ["plain", "fast", "bf16", "bf16-compile"]
    on_gpu = variants_of(["half", "half-compile"], torch.device("cuda"))
    assert [(v.name, v.dtype, v.compiled) for v in on_gpu] == [
        ("fp16", torch.float16, False),
        ("bf16", torch.bfloat16, False),
        ("fp16-compile", torch.float16, True),
        ("bf16-compile", torch.bfloat16, True),
    ]
    replayed = variants_of(["fast-graph", "half-graph", "half-compile-graph"], torch.device("cuda"))
    assert [v.name for v in replayed if v.graphs and not v.counts] == [
        "fast-graph", "fp16-graph", "bf16-graph", "fp16-compile-graph", "bf16-compile-graph",
    ]  # fmt: skip


def test_the_seeker_runs_and_is_overruled() -> None:
    class Doubled(nn.Module):
        calls = 0

        def forward(self, features: Tensor) -> tuple[Tensor]:
            self.calls += 1
            return (2 * features,)

    own = Doubled()
    given = GivenHeatmap()
    features = torch.ones(1)
    assert given.run("seeker", own, features)[0].item() == 2.0
    given.logits = torch.tensor([7.0])
    assert given.run("seeker", own, features)[0].item() == 7.0
    assert given.run("stem", own, features)[0].item() == 2.0
    assert own.calls == 3


def test_variants_compute_the_same(model: ESOD) -> None:
    variants = variants_of(["plain", "fast", "half"], CPU)
    bench = Bench(model, variants, PLAN, CPU)
    outputs = {}
    for variant in variants:
        ready = bench.prepared[variant.name]
        with torch.inference_mode():
            outputs[variant.name] = [
                bench.forward(ready, Case(variant.name, SIZE, 1, kept, "dense")) for kept in (0.2, None)
            ]
        assert {p.dtype for p in ready.esod.parameters()} == {variant.dtype}
        assert ready.esod.head.coder.anchors.dtype == torch.float32  # type: ignore[union-attr]
        assert ready.dense.seeker is None
        assert ready.dense.head is ready.esod.head, "the dense twin has weights of its own"
    for name, tolerance in (("fast", 1e-3), ("bf16", 0.15)):
        for plain, other in zip(outputs["plain"], outputs[name], strict=True):
            assert torch.equal(plain.patches.xyxy_cell, other.patches.xyxy_cell)
            for expected, level in zip(plain.levels, other.levels, strict=True):
                torch.testing.assert_close(level.raw.float(), expected.raw, atol=tolerance, rtol=tolerance)
    assert model.seeker is not None and isinstance(model.stem[0].conv.bn, nn.BatchNorm2d), (
        "the given model was changed"
    )  # type: ignore[index]


def test_a_model_without_heatmap_is_refused() -> None:
    config = replace(TINY, seeker=SeekerConfig(kind="none"), slicer=SlicerConfig(algorithm="none"))
    with pytest.raises(ValueError, match="no heatmap head"):
        prepare(lively_model(config, 0), Mode("plain"), CPU)


def test_a_sparse_head_that_cannot_be_is_refused(model: ESOD) -> None:
    single = lively_model(replace(TINY, head=HeadConfig(kind="single")), 0)
    with pytest.raises(ConfigError, match="sparse head"):
        Bench(single, [Mode("plain")], replace(PLAN, heads=["sparse"]), CPU)


def test_activations_are_alive(model: ESOD) -> None:
    with torch.no_grad():
        features = model.stem(torch.rand(1, 3, 128, 160))
    assert 0.01 < float(features.std()) < 10


# --- running -------------------------------------------------------------------------------------


def test_nothing_kept_has_one_head() -> None:
    plan = replace(PLAN, kept=[0.0, 0.5], heads=["dense", "sparse"])
    assert [(c.kept, c.head) for c in cases_of(plan, ["plain"])] == [
        (None, "dense"), (0.0, "dense"), (0.5, "dense"), (0.5, "sparse"),
    ]  # fmt: skip


def test_a_variant_that_does_not_compile_is_reported(model: ESOD, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no compiler here\nmore about it")

    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: setattr(self, "_compiled_call_impl", refuse))
    bench = Bench(model, variants_of(["fast", "fast-compile"], CPU), PLAN, CPU)
    told: list[str] = []
    measured = measure(bench, told.append)
    assert {case.variant for case in measured.cases} == {"fast"}
    assert [(f.variant, f.why) for f in measured.failures] == [
        ("fast-compile", "RuntimeError: no compiler here")
    ]
    assert told[0] == "fast-compile does not run here: no compiler here"
    assert [len(case.total_ms) for case in measured.cases] == [2, 2]


def test_no_round_begins_when_the_time_is_up(model: ESOD) -> None:
    plan = replace(PLAN, rounds=50, kept=[0.0], seconds=0.0)
    measured = measure(Bench(model, variants_of(["fast"], CPU), plan, CPU), lambda line: None)
    assert {len(case.total_ms) for case in measured.cases} == {1}, "one is run in any case"


def test_an_error_of_an_eager_variant_is_not_hidden(model: ESOD, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(model, variants_of(["fast"], CPU), PLAN, CPU)
    monkeypatch.setattr(bench, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        measure(bench, lambda line: None)


def test_the_threshold_lets_the_planned_number_through(model: ESOD) -> None:
    bench = Bench(model, variants_of(["plain"], CPU), replace(PLAN, batches=[2]), CPU)
    result = bench.describe(Case("plain", SIZE, 2, 0.2, "dense"))
    assert result.candidates in range(2 * 20 - 3, 2 * 20 + 1)
    assert bench.describe(Case("plain", SIZE, 2, 0.0, "dense")).candidates == 0


# --- counting ------------------------------------------------------------------------------------


def test_operations_are_those_of_the_summary(model: ESOD) -> None:
    ready = prepare(model, Mode("plain", folded=False), CPU)
    ready.given.logits = given_logits(TINY, 2, (32, 40), 0.2, 3, 0)
    found = gflops_by_stage(ready.esod, torch.rand(2, 3, *SIZE), ready.given)
    expected = cost_at(model, SIZE, 0.2).gflops
    assert found["stem"] == pytest.approx(expected["stem"])
    assert found["seeker"] == pytest.approx(expected["seeker"])
    assert found["deep"] == pytest.approx(expected["deep"] + expected["neck"])
    assert found["head"] == pytest.approx(expected["head"])


def test_bytes_of_a_convolution() -> None:
    part = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU())
    found = traffic(part, torch.zeros(1, 3, 8, 10))
    read, weights, written = 3 * 80, 4 * 3 * 9, 4 * 80
    assert found.conv_gb == pytest.approx((read + weights + written) * 4 / 1e9)
    assert found.moved_gb == pytest.approx((read + weights + 3 * written) * 4 / 1e9)
    assert found.gflops == pytest.approx(2 * 4 * 3 * 9 * 80 / 1e9)


def test_views_move_nothing() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(1, 0)[1:].unsqueeze(0)

    assert traffic(Turned(), torch.zeros(4, 5)).moved_gb == 0


# --- figures -------------------------------------------------------------------------------------


def case(
    variant: str, mode: str, kept: float, stages: dict[str, list[float]], **changes: object
) -> CaseResult:
    total = [sum(column) for column in zip(*stages.values(), strict=True)]
    result = CaseResult(
        variant, mode, [64, 96], 1, kept, kept, 10, "dense", 1.0, 5,  # type: ignore[arg-type]
        {"stem": 1.0, "seeker": 0.5, "deep": 8.0 * kept, "head": 2.0 * kept}, total, stages,
    )  # fmt: skip
    return replace(result, **changes)


@pytest.fixture
def result() -> BenchmarkResult:
    dense = {"stem": [4.0, 5.0, 6.0], "deep": [30.0] * 3, "head": [10.0] * 3, "nms": [1.0] * 3}
    esod = {
        "stem": [4.0, 5.0, 6.0], "seeker": [1.0] * 3, "slicer": [0.5] * 3, "gather": [0.5] * 3,
        "deep": [6.0, 7.0, 8.0], "head": [2.0] * 3, "nms": [1.0] * 3,
    }  # fmt: skip
    cases = [
        case("plain", "dense", 1.0, dense),
        case("plain", "esod", 0.2, esod),
        case("fast", "esod", 0.2, {name: [value / 2 for value in times] for name, times in esod.items()}),
        case(
            "plain",
            "esod",
            0.2,
            {name: [value * 3 for value in times] for name, times in esod.items()},
            batch=4,
        ),
    ]
    stems = [StemCost("plain", [64, 96], 1, gflops=2.0, conv_gb=0.01, moved_gb=0.05)]
    machine = [
        MachineSpeed("copy", "GB/s", [10.0, 5.0, 20.0]),
        MachineSpeed("matmul float32", "GFLOP/s", [1000.0]),
    ]
    return BenchmarkResult(FORMAT, "", "m.yaml", {}, {}, {}, cases, stems, machine, [])


def test_figures(result: BenchmarkResult) -> None:
    figures = Figures(result)
    dense, esod, fast, four = result.cases
    assert figures.settings == [((64, 96), 1), ((64, 96), 4)]
    assert figures.against_plain(esod) == 1.0
    assert figures.against_plain(fast) == 2.0
    assert figures.against_dense(esod) == pytest.approx(46 / 17)
    assert figures.against_dense(fast) == pytest.approx(46 / 8.5)
    # 10 ms behind the seeker, in three rounds 9, 10, 11; a fifth of the operations of 40 ms is 8 ms.
    assert figures.kept_efficiency(esod) == pytest.approx(10 / 8)
    assert figures.kept_efficiency(dense) is None
    assert figures.kept_efficiency(fast) is None, "fast has no dense twin here"
    assert figures.batch_efficiency(four) == pytest.approx(3 / 4)
    assert figures.flop_limit(((64, 96), 1), "plain") == (6.0, 40.0)
    assert figures.flop_limit(((64, 96), 1), "fast") is None
    assert forward_ms(esod) == 16.0
    assert choosing(esod) == (1.0, 1 / 16)


def test_what_is_aimed_at(result: BenchmarkResult) -> None:
    result.settings = {"device": "cpu", "fast_bf16": False}
    parts = [
        Part("suppression", "many", 11.0), Part("head, dense", "", 4.0), Part("head, sparse at 5%", "", 1.0),
    ]  # fmt: skip
    found = {verdict.aim: verdict for verdict in verdicts(result, parts)}
    fast = found["fast (float32), 20% kept, against plain ESOD ≥ 1.2×"]
    assert (fast.found, fast.holds, fast.word) == ("2.00×", True, "holds")
    half = found["bf16, 20% kept, against plain dense ≥ 8×"]
    assert (half.holds, half.word) == (None, "cannot be measured here")
    lost = found["plain, batch 1: time behind the seeker ≤ 1.3 × its share of the operations"]
    assert (lost.found, lost.holds) == ("1.25 at 20%", True)
    four = found["a batch of 4 ≤ 4.0 × one image"]
    assert (four.found, four.holds) == ("at most 3.00 × (plain, 20% kept)", True)
    choosing = found["slicing and gathering ≤ 2 % of the network's time at any share"]
    assert choosing.holds is False and choosing.found.startswith("at most 6.2% (0.50 ms; fast")
    assert found["suppression (many) ≤ 10 ms"].word == "does not hold"
    assert found["sparse head with 5 % of the positions ≤ 0.5 × the dense one"].found == "0.25 ×"


def test_aims_on_a_gpu(result: BenchmarkResult) -> None:
    result.settings, result.model = {"device": "cuda", "fast_bf16": None}, "yolov5m.yaml"
    for one in result.cases:
        one.input_hw = [864, 1536]
    speed, ratio = [v for v in verdicts(result) if "images/s" in v.aim or "against" in v.aim]
    assert speed.found == "118 (fast)" and speed.holds is False
    assert ratio.found == "2.00×" and ratio.holds is False


def test_the_floor_of_a_pass(result: BenchmarkResult) -> None:
    figures, case = Figures(result), replace(result.cases[1], conv_gb=0.005)
    assert figures.floor(case) == pytest.approx(3.5), "3.5 GFLOPs at 1000 GFLOP/s"
    assert figures.floor(replace(case, conv_gb=0.1)) == pytest.approx(10.0)
    result.machine.clear()
    assert figures.floor(case) is None


def test_the_floor_of_the_stem(result: BenchmarkResult) -> None:
    floor = Figures(result).stem_floor(result.stems[0])
    assert floor.ms == pytest.approx(5.0)
    assert floor.gflops_s == pytest.approx(2.0 / 0.005)
    assert floor.gb_s == pytest.approx(0.05 / 0.005)
    assert (floor.machine_gflops_s, floor.machine_gb_s) == (1000.0, 10.0)
    assert floor.floor_ms == pytest.approx(2.0), "2 GFLOPs at 1000 GFLOP/s take longer than 10 MB at 10 GB/s"


def test_a_result_survives_its_file(result: BenchmarkResult, tmp_path: Path) -> None:
    result.write(tmp_path / "r.json")
    assert BenchmarkResult.read(tmp_path / "r.json") == result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ('{"cases": []}', "not a result of scripts/benchmark.py"),
        ('{"format": 1, "command": "x"}', "incomplete: .*model"),
        ('{"format": 1, "comand": "x"}', "did you mean 'command'"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        BenchmarkResult.read(tmp_path / "r.json")
