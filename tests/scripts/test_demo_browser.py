"""The demo page in a real browser: clicks, sliders, tabs, a refused file; and that nothing is asked of other hosts."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PATIENCE_S = 300
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def requirement(name: str, *programs: str) -> str:
    """The first of these programs that is there; without one the test is skipped, saying why."""
    found = next((path for program in programs if (path := shutil.which(program)) is not None), None)
    if found is None:
        pytest.skip(f"no {name} ({' or '.join(programs)}) on this machine")
    return found


def wait_for(what: str, condition: Callable[[], Any]) -> Any:
    """The first value of a condition that counts as true."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError(f"waited {PATIENCE_S} s for {what}")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A served page, started as a user would."""
    for package in ("gradio", "selenium"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("demo") / "log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(log.parent / "uploads")}
    command = [
        sys.executable,
        str(ROOT / "scripts" / "demo.py"),
        "--port",
        str(port),
        "--upload-mb",
        "1",
        "--device",
        "cpu",
    ]
    with log.open("w") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:

        def answers() -> bool:
            assert server.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as reply:
                    return "content-security-policy" in reply.headers
            except (urllib.error.URLError, TimeoutError):
                return False

        wait_for("the server", answers)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(timeout=60)


class Page:
    """The page in a browser."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self.address = address

    def text(self, css: str) -> str:
        return str(
            self.driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", css)
        )

    def click(self, css: str, words: str = "") -> None:
        """Click the first visible element that holds these words."""

        def found() -> Any:
            elements = self.driver.find_elements("css selector", css)
            return next((e for e in elements if words in e.text and e.is_displayed()), None)

        element = wait_for(f"{css} {words}", found)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def wait_text(self, css: str, words: str) -> str:
        wait_for(f"{words!r} in {css}, which says {self.text(css)!r}", lambda: words in self.text(css))
        return self.text(css)

    def detections(self) -> int | None:
        """The number that the summary says; None while it is being made."""
        found = re.search(r"(\d+) detection", self.text("#summary"))
        return None if found is None else int(found[1])

    def picture(self, name: str) -> str:
        """Address of a shown picture that has arrived."""
        script = "const i = document.querySelector(arguments[0]); return i && i.naturalWidth ? i.src : ''"
        return str(wait_for(f"picture {name}", lambda: self.driver.execute_script(script, f"#{name} img")))

    def upload(self, path: Path) -> None:
        self.driver.find_element("css selector", "#dropped input[type=file]").send_keys(str(path))

    def shot(self, name: str) -> None:
        """Keep a screenshot, where ESOD_SCREENSHOTS names a folder."""
        folder = os.environ.get("ESOD_SCREENSHOTS")
        if folder:
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    def requests(self) -> set[str]:
        """Hosts that were asked for something since the last call."""
        entries = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        urls = [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]
        return {
            urlsplit(url).netloc for url in urls if urlsplit(url).scheme in ("http", "https", "ws", "wss")
        }


@pytest.fixture
def page(address: str, tmp_path: Path) -> Iterator[Page]:
    browser = requirement("Chromium", "chromium", "chromium-browser", "google-chrome")
    program = requirement("driver of Chromium", "chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(program))
    try:
        driver.set_page_load_timeout(PATIENCE_S)
        shown = Page(driver, address)
        driver.get("about:blank")
        shown.requests()
        driver.get(address)
        yield shown
    finally:
        driver.quit()


def test_the_page(page: Page, address: str, tmp_path: Path) -> None:
    page.wait_text("#summary", "detection")
    first, shown = page.picture("boxes"), page.detections()
    page.shot("boxes")

    page.click("#samples button[aria-label='Thumbnail 2 of 2']")
    wait_for("the other sample", lambda: page.picture("boxes") != first)
    wait_for("its summary", lambda: page.detections() not in (None, shown))
    many = page.detections()

    slider = page.driver.find_element("css selector", "#confidence input[type=range]")
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
    for _ in range(8):
        slider.send_keys("\ue014")  # arrow to the right
    assert many is not None
    wait_for("fewer detections", lambda: (now := page.detections()) is not None and now < many)

    budget = page.driver.find_element("css selector", "#budget input[type=range]")
    budget.send_keys("\ue014")
    page.wait_text("#summary", "1 patch,")

    for name in ("Heatmap", "Patches"):
        page.click("button[role=tab]", name)
        page.picture(name.lower())
        page.shot(name.lower())
    page.click("button[role=tab]", "Cost")
    cost = page.wait_text("#cost", "GFLOPs by stage")
    assert "of dense GFLOPs" in cost and "1 patch," in cost
    page.shot("cost")

    (tmp_path / "notes.txt").write_text("no picture")
    page.upload(tmp_path / "notes.txt")
    page.wait_text("#message", "notes.txt is not a picture")
    page.shot("refused")

    assert page.requests() == {urlsplit(address).netloc}, "nothing is asked of other hosts"


def test_an_own_picture_and_one_that_is_too_large(page: Page, tmp_path: Path) -> None:
    page.wait_text("#summary", "image 960 × 544")
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / "own.png"), np.full((200, 300, 3), 90, dtype=np.uint8))
    page.upload(tmp_path / "own.png")
    page.wait_text("#summary", "image 300 × 200")

    page.driver.refresh()
    page.wait_text("#summary", "image 960 × 544")
    (tmp_path / "large.jpg").write_bytes(b"\xff\xd8\xff" + bytes(1_500_000))
    page.upload(tmp_path / "large.jpg")
    page.wait_text("body", "exceed")
    page.shot("too_large")


def test_another_host_name_is_refused(address: str) -> None:
    request = urllib.request.Request(address, headers={"Host": "example.org"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code == 400


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Page) -> None:
    metrics = {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.wait_text("#summary", "detection")
    page.picture("boxes")
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 380
    page.shot("phone")
