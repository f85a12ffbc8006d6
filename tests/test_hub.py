"""torch.hub with this folder as source: in a process of its own, from another working directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hubconf

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with nothing of the project on its path."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_hub_from_any_folder(tmp_path: Path) -> None:
    """The sample detector predicts, also when the folder is off the path again; files are found from anywhere."""
    code = f"""
import sys, numpy as np, torch
root = {str(ROOT)!r}
model = torch.hub.load(root, "sample", source="local", device="cpu")
assert root not in sys.path
result = model.predict(root + "/data/images/sample_1.jpg", img_size=320, conf_thres=0.05)
assert len(result.xyxy) > 0 and result.plot(heatmap=True, patches=True).ndim == 3
other = torch.hub.load(root, "esod", source="local", weights=root + "/weights/sample_yolov5n.pt", slicer="none", device="cpu")
assert len(other.predict(np.zeros((64, 64, 3), np.uint8), img_size=64).patches) == 1
network = torch.hub.load(root, "yolov5n", source="local", num_classes=3, names=["a", "b", "c"])
assert isinstance(network, torch.nn.Module) and network.config.names == ["a", "b", "c"]
print("all well")
"""
    result = run_python(code, tmp_path)
    assert result.returncode == 0 and result.stdout.endswith("all well\n"), result.stderr


def test_every_configuration_is_an_entry_point() -> None:
    # What torch.hub.list, which only knows addresses, takes for an entry point.
    names = [name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")]
    files = sorted((ROOT / "models" / "cfg").glob("*.yaml"))
    assert sorted(names) == sorted([*(file.stem.replace("-", "_") for file in files), "esod", "sample"])
    assert all(vars(hubconf)[name].__doc__ for name in names)


def test_other_packages_of_our_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text("", encoding="utf-8")
    code = f"import utils, torch\ntorch.hub.load({str(ROOT)!r}, 'sample', source='local')"
    result = run_python(code, tmp_path)
    assert result.returncode == 1
    assert "ImportError: this program already uses 'utils' from" in result.stderr
