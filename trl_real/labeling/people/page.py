"""Web page for votes on one pair at a time; each vote is on disk before the next pair is shown."""

import json
import os
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_real.errors import MissingExtraError, TrlRealError
from trl_real.labeling.people.desk import Desk
from trl_real.labeling.people.page_gate import gate


ASSETS = Path(__file__).parent / "page_assets"
LAST_WORDS = 1.5  # seconds for the browser to get the last answer before the server stops
# Side -> label and style of its button.
CHOICES = {
    "left": ("First is better", "primary"),
    "tie": ("Tie", "secondary"),
    "right": ("Second is better", "primary"),
    "skip": ("Skip", "secondary"),
}


def build_page(
    dataset: Dataset,
    votes: str | Path,
    *,
    annotator: str | None = None,
    guidelines: str | Path = "",
    seed: int = 42,
) -> Any:
    """
    Build the page as a Gradio app, to launch yourself; `serve_page` launches it.

    Args:
        dataset: Output of a selector's `select` or `map`: `prompt`, `pair`, `response_a`, `response_b`.
        votes: Path of the votes file; an existing file is continued.
        annotator: Name stored with the votes; None asks for it on the page.
        guidelines: Guidelines for the annotator: path of a Markdown file, or Markdown text.
        seed: Seed of the order and the sides, combined with the annotator's name.

    Returns:
        `gradio.Blocks`, with a `desk` that locks the votes file until `desk.close()`.

    Raises:
        MissingExtraError: If Gradio is not installed.
        TrlRealError: If the dataset has no pairs, or the votes file cannot be written.
    """
    gr = _gradio()
    text = _guidelines(guidelines)
    desk = Desk(dataset, votes, annotator, seed)
    with gr.Blocks(title="Which response is better?", analytics_enabled=False, fill_width=True) as blocks:
        blocks.desk = desk
        gr.HTML(
            f"<style>{(ASSETS / 'page.css').read_text(encoding='utf-8')}</style>",
            apply_default_css=False,
            elem_id="style",
        )
        asked = gr.Textbox(visible=False)
        with gr.Column(visible=False, elem_id="start") as start:
            gr.Markdown("## Which response is better?\nYour name stands beside each of your votes.")
            name = gr.Textbox(label="Your name", max_lines=1, max_length=80, elem_id="annotator", autofocus=True)
            begin = gr.Button("Start", variant="primary", elem_id="begin")
            gr.Markdown(text, visible=bool(text), elem_id="start-guidelines", container=True)
        with gr.Column(visible=False, elem_id="work") as work:
            with gr.Accordion("Guidelines", open=False, visible=bool(text), elem_id="guidelines"):
                gr.Markdown(text)
            stage = gr.HTML(apply_default_css=False, elem_id="stage")
            gr.HTML(_NO_ANSWER, apply_default_css=False, elem_id="silence")
            with gr.Row(elem_id="votes"):
                buttons = {
                    side: gr.Button(label, variant=variant, elem_id=f"vote-{side}")
                    for side, (label, variant) in CHOICES.items()
                }
                buttons["undo"] = gr.Button("Undo", elem_id="vote-undo")
        _wire(gr, blocks, desk, asked, (name, begin), (start, work, stage, *buttons.values()), buttons)
    return blocks


def _wire(
    gr: Any, blocks: Any, desk: Desk, asked: Any, entry: tuple[Any, Any], outputs: tuple, buttons: dict[str, Any]
) -> None:
    """Connect the events; the browser sends the annotator and the pair that was seen in `asked`."""
    name, begin = entry

    def shown(view: str) -> list[Any]:
        at_work, left = bool(view), 'id="end"' not in view
        choices = [gr.update(visible=left) for _ in CHOICES]
        return [gr.update(visible=not at_work), gr.update(visible=at_work), view, *choices, gr.update()]

    def arrive(message: str) -> list[Any]:
        return shown(desk.show(_parsed(message).get("annotator") or ""))

    def press(action: str) -> Callable[[str], list[Any]]:
        return lambda message: shown(desk.act(action, _parsed(message)))

    common = {"outputs": list(outputs), "show_progress": "hidden", "queue": False, "api_visibility": "private"}
    blocks.load(arrive, [asked], js=(ASSETS / "page.js").read_text(encoding="utf-8"), **common)
    for event in (name.submit, begin.click):
        event(arrive, [name], js="(name) => window.trlReal.remember(name)", **common)
    for action, button in buttons.items():
        button.click(press(action), [asked], js="() => window.trlReal.take()", **common)


def serve_page(
    dataset: Dataset,
    votes: str | Path,
    *,
    annotator: str | None = None,
    guidelines: str | Path = "",
    seed: int = 42,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
    until_done: bool = False,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """
    Serve the page until Ctrl+C.

    Args:
        dataset, votes, annotator, guidelines, seed: Arguments of `build_page`.
        host: Host to listen on; with any other than 127.0.0.1, everybody who reaches the machine and has the address
            with its token can read and vote.
        port: Port to listen on; the first free one from 7860 by default.
        open_browser: Whether to open the page in a browser.
        until_done: Whether to stop when every annotator who opened the page has voted on every pair.
        on_ready: Function that receives the URL when the page is ready, with the token that opens it.

    Raises:
        MissingExtraError: If Gradio is not installed.
        TrlRealError: If the dataset has no pairs, or the file or the port is in use.
    """
    blocks = build_page(dataset, votes, annotator=annotator, guidelines=guidelines, seed=seed)
    try:
        url = _launch(blocks, host, port, open_browser)
        if on_ready is not None:
            on_ready(url)
        while not (until_done and blocks.desk.finished.is_set()):
            time.sleep(0.2)
        time.sleep(LAST_WORDS)
    except KeyboardInterrupt:
        pass
    finally:
        blocks.close(verbose=False)
        blocks.desk.close()


def _launch(blocks: Any, host: str, port: int | None, open_browser: bool) -> str:
    gr = _gradio()
    token, middleware = gate(host)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        _, url, _ = blocks.launch(
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            run_history=False,
            max_file_size=1,
            enable_monitoring=False,
            footer_links=[],
            theme=gr.themes.Base(primary_hue="blue", **fonts),
            app_kwargs={"middleware": middleware, "docs_url": None, "redoc_url": None, "openapi_url": None},
        )
    except OSError as error:
        where = f"{host}:{port}" if port else host
        raise TrlRealError(f"Cannot listen on {where} ({error}). Give another --port, or leave it out.") from error
    return f"{url}?token={token}"


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at import
    try:
        return import_module("gradio")
    except ModuleNotFoundError as error:
        raise MissingExtraError("gradio", "label") from error


def _guidelines(guidelines: str | Path) -> str:
    is_path = isinstance(guidelines, Path) or ("\n" not in guidelines and guidelines.endswith((".md", ".txt")))
    if not is_path:
        return str(guidelines)
    try:
        return Path(guidelines).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrlRealError(f"Cannot read the guidelines {str(guidelines)!r}. Give a Markdown file.") from error


def _parsed(message: Any) -> dict[str, Any]:
    try:
        value = json.loads(message)
    except (TypeError, ValueError):
        value = None
    return value if isinstance(value, dict) else {}


_NO_ANSWER = (
    '<p class="note" role="alert">No answer from the server. Start it again and open the address that it prints: '
    "every vote before this pair is on disk.</p>"
)
