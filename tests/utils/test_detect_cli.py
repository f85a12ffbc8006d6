"""The options of detect.py: the documented line, the defaults, and what is refused."""

from __future__ import annotations

import pytest

from utils.detect_cli import parse_detect_options


def test_documented_line() -> None:
    options = parse_detect_options(
        [
            "--weights",
            "W.pt",
            "--source",
            "data/images/visdrone.txt",
            "--img-size",
            "1536",
            "--device",
            "0",
            "--view-cluster",
            "--line-thickness",
            "1",
        ]
    )
    assert (options.weights, options.source, options.img_size) == ("W.pt", "data/images/visdrone.txt", 1536)
    assert (options.device, options.view_cluster, options.line_thickness) == ("0", True, 1)


def test_defaults() -> None:
    options = parse_detect_options([])
    assert (options.weights, options.source) == ("weights/sample_yolov5n.pt", "data/images")
    assert (options.conf_thres, options.iou_thres, options.max_det) == (0.25, 0.45, 500)
    assert (options.project, options.name, options.exist_ok) == ("runs/detect", "exp", False)
    assert 1 <= options.workers <= 8
    assert options.classes is None and options.line_thickness is None
    assert (options.slicer, options.head, options.heatmap_thres, options.max_patches) == (
        None,
        None,
        None,
        None,
    )
    switches = (
        "view_cluster save_txt save_conf save_crop nosave hide_labels hide_conf agnostic_nms augment half"
    )
    assert not any(getattr(options, name) for name in switches.split())


def test_every_switch() -> None:
    line = (
        "--save-txt --save-conf --save-crop --classes 0 2 --agnostic-nms --max-det 9 --augment --half "
        "--hide-labels --hide-conf --nosave --exist-ok --slicer greedy --head sparse "
        "--heatmap-thres 0.3 --max-patches 4 --workers 0"
    )
    options = parse_detect_options(line.split())
    assert options.classes == [0, 2] and options.max_det == 9 and options.workers == 0
    assert (options.slicer, options.head, options.heatmap_thres, options.max_patches) == (
        "greedy",
        "sparse",
        0.3,
        4,
    )
    assert options.save_conf and options.save_crop and options.half and options.exist_ok and options.nosave


@pytest.mark.parametrize(
    "line, window, overlap, img_size",
    [
        ("", None, None, 1536),
        ("--img-size 864x1536", None, None, (864, 1536)),
        ("--window 4096", 4096, 128, 4096),
        ("--window 1024 --overlap 256 --img-size 1536", 1024, 256, 1536),
        ("--window 128", 128, 64, 128),
        ("--window 512 --overlap 0", 512, 0, 512),
    ],
)
def test_windows_are_as_large_as_the_network_input(
    line: str, window: int | None, overlap: int | None, img_size: int | tuple[int, int]
) -> None:
    options = parse_detect_options(line.split())
    assert (options.window, options.overlap, options.img_size) == (window, overlap, img_size)


@pytest.mark.parametrize(
    "line, expected",
    [
        ("--overlap 128", "--window, which is not given"),
        ("--window 1000", "992 or 1024"),
        ("--window 512x1024", "square"),
        ("--window 512 --img-size 512x1024", "square"),
        ("--window 512 --overlap 100", "multiple of 32"),
        ("--window 512 --overlap 288", "at most 256"),
        ("--reconnect -1", "at least 0"),
        ("--save-conf", "--save-txt"),
        ("--conf-thres 2", "from 0 to 1"),
        ("--nms soft --iou-thres 0.5", "soft has no threshold"),
        ("--img-size 1000", "992 or 1024"),
        ("--classes -1", "--classes"),
        ("--line-thickness 0", "at least 1"),
        ("--workers -1", "at least 0"),
        ("--view-img", "not offered"),
        ("--view-clusters", "did you mean --view-cluster"),
    ],
)
def test_mistakes_exit_with_2_and_say_what_to_write(
    line: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_detect_options(line.split())
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err
