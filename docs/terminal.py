"""
Record the four verbs on the example pool with a real model, and draw the recording as images/terminal.svg.

    python docs/terminal.py --model HuggingFaceTB/SmolLM2-135M-Instruct

What is shown is what the commands printed, without progress bars, the trainer's log and the table of all rates;
`images/terminal.txt` keeps it, and `--draw` draws it again without a run.
"""

import argparse
import html
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).parents[1]
TEXT, PICTURE = (ROOT / "docs" / "images" / f"terminal.{kind}" for kind in ("txt", "svg"))
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
COMMANDS = (
    f"select --dataset examples/pool.jsonl --model {HUB_ID} --budget 0.25 --output_dir chosen",
    "label --dataset chosen --min_gap 0.05 --output_dir labels",
    f"train --dataset labels --model {HUB_ID} --output_dir aligned --use_peft --learning_rate 2e-4 "
    "--num_train_epochs 2",
    f"win-rate --dataset examples/prompts.jsonl --model aligned --baseline {HUB_ID} --judge chat "
    f"--judge_model {HUB_ID} --max_new_tokens 32 --output_dir compared",
)
LEFT_OUT = re.compile(r"\d+%\||\x1b\[A|^\{'|\t")  # bars, logs, a row of the table
WIDTH, LINE, LETTER = 118, 19, 7.25  # columns; pixels
PAUSE, PRINTED = 0.9, 0.25  # seconds that a command, and a line of output, takes in the picture


def record(model: str, folder: Path) -> str:
    """Run the commands in a folder; return commands and output as on a terminal, with the Hub's name for the model."""
    (folder / "examples").symlink_to(ROOT / "examples")
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    lines = []
    for command in COMMANDS:
        argv = [sys.executable, "-m", "trl_real.cli", *command.replace(HUB_ID, model).split()]
        done = subprocess.run(
            argv, cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            raise SystemExit(f"{command}\n{done.stdout}")
        printed = [line.replace(model, HUB_ID).rstrip() for line in done.stdout.splitlines()]
        lines += [f"$ trl-real {command}", *(line for line in printed if line and not LEFT_OUT.search(line)), ""]
    return "\n".join(lines).rstrip() + "\n"


def draw(text: str) -> str:
    """An SVG in which the lines appear one after another; without animation all of them are there."""
    rows, at = [], 0.0
    for line in text.splitlines():
        is_command = line.startswith("$ ")
        at += PAUSE if is_command else PRINTED
        style = "c" if is_command else "o"
        rows += [(part, style, at) for part in _wrapped(line)]
    height = 2 * LINE + LINE * len(rows)
    shown = "\n".join(
        f'<text xml:space="preserve" class="{style}" x="16" y="{LINE * (i + 1.7):.0f}" '
        f'style="animation-delay:{at:.2f}s">'
        f"{html.escape(part)}</text>"
        for i, (part, style, at) in enumerate(rows)
    )
    width = round(WIDTH * LETTER + 32)
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">
<title>select, label, train and win-rate on the example pool, as printed</title>
<style>
text {{ font: 12px ui-monospace, SFMono-Regular, Menlo, monospace; white-space: pre; animation: a .01s both }}
.c {{ fill: #9be9a8 }} .o {{ fill: #e6edf3 }}
@keyframes a {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}
@media (prefers-reduced-motion: reduce) {{ text {{ animation: none }} }}
</style>
<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>
{shown}
</svg>
"""


def _wrapped(line: str) -> list[str]:
    """Cut a line at blanks as a shell would, with a backslash after a part of a command."""
    mark = " \\" if line.startswith("$ ") else ""
    parts, rest = [], line
    while len(rest) > WIDTH:
        cut = rest.rfind(" ", 0, WIDTH - len(mark)) if " " in rest[4 : WIDTH - len(mark)] else WIDTH - len(mark)
        parts.append(rest[:cut] + mark)
        rest = "    " + rest[cut:].lstrip()
    return [*parts, rest]


def main() -> None:
    """Record, unless `--draw` is given, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=HUB_ID, help="Hub id, or path of a copy; the recording shows the id")
    parser.add_argument("--draw", action="store_true", help="draw the last recording again")
    args = parser.parse_args()
    if not args.draw:
        with tempfile.TemporaryDirectory() as folder:
            TEXT.write_text(record(args.model, Path(folder)), encoding="utf-8")
    PICTURE.write_text(draw(TEXT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
