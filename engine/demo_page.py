"""The demo page in Gradio: a picture in, sliders, and tabs for boxes, heatmap, patches and cost (`engine.demo`).

Nothing is fetched from elsewhere: system fonts, no analytics, and a policy by which the browser itself refuses other hosts.
Requests that were made for another host name are refused, too (a page elsewhere whose name was pointed to this machine).
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.demo import (
    SAMPLES,
    Demo,
    RefusedError,
    Settings,
    cost_html,
    read_dropped,
    refusal_html,
)
from utils.images import ByteImage
from utils.page import PARTS_STYLE, Html, element

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

CONTENT_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
PAGE_STYLE = """
.gradio-container { max-width: 1320px !important; }
#message:not(:has(.note)) { display: none; }
#samples .caption-label { display: none; }
.gradio-container p.soft { color: var(--soft); font-size: 0.9rem; margin: 2px 0; }
.gradio-container .tiles span, .gradio-container .keys { color: var(--soft); }
#samples .grid-wrap { overflow: auto; }
#summary p { margin: 2px 0; }
#cost h3 { font-size: 1rem; margin: 18px 0 6px; }
@media (max-width: 560px) {
  .tab-container button { padding: 0 9px !important; }
  .gradio-container h1 { font-size: 1.4rem; }
}
"""
NOT_MEASURED = element("p", "Not measured yet for this picture and these settings.", class_="soft")
MOST_PATCHES = 64


class MissingPackageError(RuntimeError):
    """Gradio is not installed; the message says how to install it."""


def load_gradio() -> Any:
    """The gradio package, with its analytics switched off.

    Raises:
        MissingPackageError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise MissingPackageError(
            f"the demo page needs Gradio ({error}): pip install gradio  (or -r requirements-optional.txt)"
        ) from error
    return gradio


class Handlers:
    """What happens when something on the page is used; every handler returns new values of some components.

    The session's state is the path of its picture: a sample, or an upload that Gradio put into its own folder.

    Args:
        demo: what answers.
        unchanged: stands for "as it was".
    """

    def __init__(self, demo: Demo, unchanged: object) -> None:
        self.demo = demo
        self.unchanged = unchanged

    def pick(self, path: str | Path | None, confidence: float, budget: float) -> tuple[Any, ...]:
        """A new picture: (its path, message, summary, three pictures, cost); a refused one changes the message only."""
        if path is None:
            return (self.unchanged,) * 7
        try:
            image = read_dropped(Path(path))
        except RefusedError as error:
            return (self.unchanged, refusal_html(error), *(self.unchanged,) * 5)
        return (str(path), *self._seen(image, confidence, budget))

    def again(self, path: str | None, confidence: float, budget: float) -> tuple[Any, ...]:
        """Other settings, same picture: everything but the path."""
        if path is None:
            return (self.unchanged,) * 6
        try:
            image = read_dropped(Path(path))
        except RefusedError as error:
            return (refusal_html(error), *(self.unchanged,) * 5)
        return self._seen(image, confidence, budget)

    def cost(self, path: str | None, confidence: float, budget: float) -> Html:
        """The cost panel."""
        if path is None:
            return NOT_MEASURED
        try:
            image = read_dropped(Path(path))
        except RefusedError as error:
            return refusal_html(error)
        return cost_html(self.demo.cost(image, _settings(confidence, budget)))

    def _seen(self, image: ByteImage, confidence: float, budget: float) -> tuple[Any, ...]:
        seen = self.demo.look(image, _settings(confidence, budget))
        return ("", seen.summary, seen.boxes, seen.heatmap, seen.patches, NOT_MEASURED)


def build_page(demo: Demo, title: str) -> Any:
    """The page as a `gradio.Blocks`.

    Args:
        demo: what answers.
        title: says which weights these are.

    Raises:
        MissingPackageError: gradio is not installed.
    """
    gr = load_gradio()
    with gr.Blocks(title="ESOD", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        state = gr.State(None)
        gr.HTML(
            element("h1", "ESOD: small objects in large images") + element("p", title, class_="soft"),
            padding=False,
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                dropped = gr.File(label="Your picture", elem_id="dropped", height=150)
                message = gr.HTML("", elem_id="message", padding=False)
                samples = gr.Gallery(
                    [(str(path), path.stem.replace("_", " ")) for path in SAMPLES if path.is_file()],
                    label="Or a sample", columns=2, height=190, allow_preview=False, interactive=False,
                    elem_id="samples", buttons=[],
                )  # fmt: skip
                confidence = gr.Slider(
                    0.05, 0.95, 0.25, step=0.05, label="Confidence: least score shown", elem_id="confidence"
                )
                budget = gr.Slider(
                    0,
                    MOST_PATCHES,
                    0,
                    step=1,
                    label="Patch budget: most patches, 0: no limit",
                    elem_id="budget",
                )
            with gr.Column(scale=3, min_width=320):
                summary = gr.HTML("", elem_id="summary", padding=False)
                with gr.Tabs():
                    pictures = []
                    for name in ("Boxes", "Heatmap", "Patches"):
                        with gr.Tab(name):
                            pictures.append(
                                gr.Image(show_label=False, format="jpeg", elem_id=name.lower(), interactive=False,
                                         buttons=["download", "fullscreen"])
                            )  # fmt: skip
                    with gr.Tab("Cost") as cost_tab:
                        cost = gr.HTML(NOT_MEASURED, elem_id="cost", padding=False)
                        measure = gr.Button("Measure again", elem_id="measure")
        widgets = _Widgets(
            state,
            dropped,
            samples,
            [confidence, budget],
            [message, summary, *pictures, cost],
            cost_tab,
            measure,
        )
        _connect(gr, page, Handlers(demo, gr.skip()), widgets)
    return page


@dataclass(frozen=True)
class _Widgets:
    """The parts of the page that do something: inputs, what is shown (the cost panel last), and its tab and button."""

    state: Any
    dropped: Any
    samples: Any
    sliders: list[Any]
    shown: list[Any]
    cost_tab: Any
    measure: Any


def _connect(gr: Any, page: Any, handlers: Handlers, widgets: _Widgets) -> None:
    """Say what happens when something is used; inside of the page's context."""
    state, sliders, shown = widgets.state, widgets.sliders, widgets.shown

    def on_sample(least: float, most: float, event: Any) -> tuple[Any, ...]:
        return handlers.pick(SAMPLES[event.index], least, most)

    def on_open(least: float, most: float) -> tuple[Any, ...]:
        return handlers.pick(SAMPLES[0], least, most)

    on_sample.__annotations__["event"] = gr.SelectData  # by its type Gradio knows that it is wanted
    hidden = {"api_visibility": "private"}
    widgets.dropped.upload(handlers.pick, [widgets.dropped, *sliders], [state, *shown], **hidden)
    widgets.samples.select(on_sample, sliders, [state, *shown], **hidden)
    page.load(on_open, sliders, [state, *shown], **hidden)
    for slider in sliders:
        slider.change(
            handlers.again,
            [state, *sliders],
            shown,
            trigger_mode="always_last",
            show_progress="hidden",
            **hidden,
        )
    for event in (widgets.cost_tab.select, widgets.measure.click):
        event(handlers.cost, [state, *sliders], shown[-1], **hidden)


def serve(
    page: Any, host: str, port: int, upload_mb: int, *, browser: bool = False, wait: bool = True
) -> str:
    """Serve a page on this machine until Ctrl-C; returns its address.

    Args:
        page: of `build_page`.
        host, port: to listen on.
        upload_mb: largest file that may be dropped, 10⁶ bytes.
        browser: open it in the default browser.
        wait: False: return at once, ``page.close()`` ends it.
    """
    gr = load_gradio()
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    names = ["localhost", "127.0.0.1", host] if is_loopback(host) else ["*"]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=names), Middleware(ContentPolicy)]
    theme = gr.themes.Base(
        primary_hue="emerald", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    _, address, _ = page.queue(default_concurrency_limit=1, max_size=32, api_open=False).launch(
        server_name=host, server_port=port, share=False, inbrowser=browser, quiet=True, prevent_thread_lock=True,
        max_file_size=f"{upload_mb}mb", ssr_mode=False, pwa=False, footer_links=[], run_history=False, theme=theme,
        head=f"<style>{PARTS_STYLE.read_text(encoding='utf-8')}{PAGE_STYLE}</style>", app_kwargs={"middleware": middleware},
        enable_monitoring=False, mcp_server=False, show_error=True,
    )  # fmt: skip
    if wait:
        page.block_thread()
    return str(address)


class ContentPolicy:
    """Adds `CONTENT_POLICY` to every answer (an ASGI middleware)."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", CONTENT_POLICY.encode())
                message["headers"] = [*message["headers"], header]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def is_loopback(host: str) -> bool:
    """Whether an address reaches no further than this machine: localhost and 127.0.0.0/8."""
    parts = host.split(".")
    numbers = len(parts) == 4 and all(part.isdecimal() and int(part) < 256 for part in parts)
    return host == "localhost" or (numbers and parts[0] == "127")


def _settings(confidence: float, budget: float) -> Settings:
    return Settings(min(max(float(confidence), 0.0), 1.0), max(int(budget), 0))
