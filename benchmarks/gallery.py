"""Make the pictures of docs/gallery.md and README.md from real runs.

    agentrl seed=0 hardware.threads=1
    agentrl -m algo=sft,grpo seed=0 hardware.threads=1 tracker=tensorboard
    agentrl algo=hipo algo.tau=0.8 seed=0 hardware.threads=1 tracker=tensorboard
    python benchmarks/gallery.py runs docs/images

If a run is missing, its pictures are skipped. A headless Chromium takes the pictures of pages (`apt-get install
chromium`). The picture of TensorBoard needs the package `tensorboard`.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from matplotlib.figure import Figure
from PIL import ImageChops
from PIL.Image import new as blank_picture
from PIL.Image import open as read_picture
from rich.console import Console
from rich.text import Text

COLUMNS, MARGIN = 110, 16
TRAINED, BEFORE = "#0072b2", "#999999"
TAGS = "train/(reward|solve_rate|lambda/sys|ema/sys)$"  # the cards of TensorBoard
SHOWN = ("solve_rate", "solve_f1", "solve_p", "solve_r")


def main(runs: Path, out: Path) -> None:
    """Write every picture whose runs are below `runs`."""
    out.mkdir(parents=True, exist_ok=True)
    pact, hipo = newest(runs, "minihop-tiny-pact"), newest(runs, "minihif-tiny_hif-hipo")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        if pact:
            first_run(pact, out / "first_run.png")
            page(agentrl("show", str(pact), "step=first", "where=reward<3", "limit=1"), work / "show.html")
            photograph((work / "show.html").as_uri(), out / "show.png", 1080, 1250)
        tool_runs = [newest(runs, f"minihop-tiny-{algo}") for algo in ("sft", "grpo", "pact")]
        report([run for run in tool_runs if run], work / "report.html", "SFT, GRPO and PACT on minihop")
        photograph((work / "report.html").as_uri(), out / "report.png", 1280, 860)
        for section in ("curves", "rollouts"):
            part = work / f"{section}.html"
            part.write_text(only_section((work / "report.html").read_text(encoding="utf-8"), section), encoding="utf-8")
            photograph(part.as_uri(), out / f"report_{section}.png", 1280, 860)
        if hipo:
            shutil.copyfile(hipo / "plots" / "overview.png", out / "hipo_run.png")
        if list(runs.glob("*/*/tensorboard")):
            tensorboard(runs, out / "tensorboard.png")
    for file in out.glob("*.png"):
        shrink(file)


def newest(runs: Path, name: str) -> Path | None:
    """Return the completed run of that name that ended last, or None."""
    found = [path.parent for path in (runs / name).glob("*/summary.json")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def first_run(run: Path, out: Path) -> None:
    """Plot the solve rate of the training rollouts, and the test metrics before and after training with their
    intervals.
    """
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    solved = [(row["step"], row["solve_rate"]) for row in steps if "solve_rate" in row]
    results = json.loads((run / "summary.json").read_text(encoding="utf-8"))["eval"]
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*solved, strict=True), color=TRAINED, linewidth=1.8)
    left.set(title="While it trains", xlabel="update", ylabel="share of rollouts solved", ylim=(0, 1))
    for offset, phase, colour in ((-0.2, "before", BEFORE), (0.2, "after", TRAINED)):
        found = [results[phase][metric] for metric in SHOWN]
        means = [one["mean"] for one in found]
        errors = [[one["mean"] - one["lo"] for one in found], [one["hi"] - one["mean"] for one in found]]
        places = [place + offset for place in range(len(SHOWN))]
        right.bar(places, means, 0.38, yerr=errors, capsize=3, color=colour, label=phase)
    right.set_xticks(range(len(SHOWN)), SHOWN)
    right.set(title="200 test tasks, 95% intervals", ylim=(0, 1))
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.25)
    figure.savefig(out, dpi=110)


def agentrl(*words: str) -> str:
    """Return what a command prints on a terminal of COLUMNS columns, with its colours. Raise SystemExit if it fails."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "agentrl", *words]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        printed = b""
        while True:
            try:
                printed += os.read(ours, 65536)
            except OSError:  # the terminal is closed, because the command has ended
                break
    os.close(ours)
    text = printed.decode().replace("\r\n", "\n")
    if process.returncode:
        raise SystemExit(f"agentrl {' '.join(words)} failed:\n{text}")
    return text


def page(printed: str, out: Path) -> None:
    """Write printed text with its colours as an HTML page."""
    console = Console(record=True, width=COLUMNS + 2, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - it lives as long as the script
    console.print(Text.from_ansi(printed))
    out.write_text(console.export_html(inline_styles=True), encoding="utf-8")


def report(runs: list[Path], out: Path, title: str) -> None:
    """Write the page of agentrl report."""
    agentrl("report", *map(str, runs), f"out={out}", f"title={title}")


def only_section(html: str, name: str) -> str:
    """Return the page with only one section, its first part unfolded, because a picture shows the top of a page."""
    head, body = html[: html.index("<body")], html[html.index(f'<h2 id="{name}"') :]
    end = body.find("<h2", 4)
    opened = body[: end if end > 0 else None].replace("<details>", "<details open>", 1)
    return f"{head}<body>{opened}"


def photograph(address: str, out: Path, width: int, height: int, wait: float = 4) -> None:
    """Take a picture of the page at an address, `wait` seconds after opening it. Raise SystemExit without Chromium."""
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if browser is None:
        raise SystemExit("gallery.py needs Chromium: apt-get install chromium")
    options = ["--headless", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"]
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    options += [f"--virtual-time-budget={int(wait * 1000)}", f"--screenshot={out}", address]
    subprocess.run([browser, *options], check=True, capture_output=True)


def tensorboard(runs: Path, out: Path) -> None:
    """Take a picture of TensorBoard on the event files below `runs`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        f"--logdir={runs}",
        "--load_fast=false",
        f"--port={port}",
        "--host=127.0.0.1",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/"
        for _ in range(120):
            try:
                urlopen(address).close()
                break
            except URLError:  # TensorBoard is still starting
                time.sleep(0.5)
        time.sleep(5)  # TensorBoard reads the event files in the background
        photograph(f"{address}?forceSVG=true&tagFilter={TAGS}#timeseries", out, 1280, 980, wait=20)
    finally:
        server.terminate()
        server.wait()


def shrink(file: Path) -> None:
    """Cut the white below the picture and reduce it to 128 colours: a third of the size."""
    picture = read_picture(file)
    if picture.mode == "P":  # the picture was reduced before
        return
    picture = picture.convert("RGB")
    content = ImageChops.difference(picture, blank_picture("RGB", picture.size, "white")).getbbox()
    bottom = min(content[3] + MARGIN, picture.height) if content else picture.height
    picture.crop((0, 0, picture.width, bottom)).quantize(128).save(file, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python benchmarks/gallery.py RUNS OUT")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
