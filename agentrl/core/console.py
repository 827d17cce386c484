"""What a person sees during a run: live progress bars on a terminal, one plain line per step elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

STOPPING = "agentrl: saving a checkpoint, then stopping; a second signal kills the run without saving"
WIDE = 4000  # columns of a pipe or a file: programs that read them need unbroken lines


def is_on_terminal(console: Console) -> bool:
    """Whether lines can be redrawn there. A pipe is not a terminal, even if a notebook or CI sets FORCE_COLOR."""
    return console.is_terminal and console.file.isatty()


def make_console(file: TextIO | None = None, markup: bool = False) -> Console:
    """Make a console that never cuts text. A terminal folds long lines; elsewhere each row of a table is one line."""
    console = Console(file=file, soft_wrap=True, highlight=False, markup=markup)
    if is_on_terminal(console):
        return console
    return Console(file=file, soft_wrap=True, highlight=False, markup=markup, width=WIDE)


class Bars(Progress):
    """Progress bars with the text of `notice` below them. The bars would paint over a line printed in any other way."""

    notice: Callable[[], str] = staticmethod(lambda: "")

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if text := self.notice():
            yield Text(text, style="bold")


class RunConsole:
    """One progress bar per phase ("train", "rollout", "update", "evaluate before", ...), each followed by free text."""

    def __init__(self, console: Console | None = None, notice: Callable[[], str] = lambda: "") -> None:
        self.console = console or Console(file=sys.stdout, soft_wrap=True)
        self._live = is_on_terminal(self.console)
        self._progress = Bars(
            TextColumn("{task.description:>16}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
        )
        self._progress.notice = notice
        self._bars: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._done: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._first: dict[str, int] = {}

    def __enter__(self) -> RunConsole:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._progress.stop()

    def say(self, text: str) -> None:
        """Print one line above the bars."""
        self.console.print(text, markup=False, highlight=False)

    def start(self, phase: str, total: int, done: int = 0) -> None:
        """Open (or reopen) the bar of a phase. `done` of `total` are finished already."""
        self._started[phase] = time.perf_counter()
        self._done[phase] = self._first[phase] = done
        self._total[phase] = total
        if self._live:
            if phase in self._bars:
                self._progress.reset(self._bars[phase], total=total, completed=done, visible=True)
            else:
                self._bars[phase] = self._progress.add_task(phase, total=total, completed=done, text="")

    def update(self, phase: str, done: int, text: str = "", line: bool = False) -> None:
        """Set how much is done. Without a terminal, `line=True` prints it with the time left."""
        self._done[phase] = done
        if self._live:
            self._progress.update(self._bars[phase], completed=done, text=text)
        elif line:
            self.say(f"{phase} {done}/{self._total[phase]}  {text}  eta {self._eta(phase)}")

    def finish(self, phase: str) -> None:
        """Close the bar of a phase."""
        if self._live and phase in self._bars:
            self._progress.remove_task(self._bars.pop(phase))

    def _eta(self, phase: str) -> str:
        steps = self._done[phase] - self._first[phase]
        if steps <= 0:
            return "-"
        left = (self._total[phase] - self._done[phase]) * (time.perf_counter() - self._started[phase]) / steps
        return f"{int(left // 60)}:{int(left % 60):02d}"
