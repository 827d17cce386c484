"""Plot the training curves of several arms as SVG text: the mean over seeds, and a 95% band from two seeds on."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from agentrl.core.stats import seeds_interval, t_interval
from agentrl.report.arms import Arm
from agentrl.report.plots import Panel, curve, panels

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
MAX_ARMS = len(COLOURS)


def arm_curves(arms: list[Arm]) -> list[tuple[str, str]]:
    """Return (title, SVG) of every panel that some arm has values for. Arms after the eighth are not drawn."""
    shown = arms[:MAX_ARMS]
    metrics = {id(arm): [run.directory.read_metrics() for run in arm.runs] for arm in shown}
    rows = [row for runs in metrics.values() for run in runs for row in run]
    drawn = []
    for panel in panels(rows):
        keys = [key for key in (*panel.keys, panel.right) if key is not None]
        for key in keys:
            series = [(arm, band([curve(run, key) for run in metrics[id(arm)]], panel.shares)) for arm in shown]
            present = [(arm, found) for arm, found in series if len(found[0])]
            if present:
                title = panel.title if len(keys) == 1 else f"{panel.title}: {key}"
                drawn.append((title, _svg(panel, key, present, [arm.label for arm in shown])))
    return drawn


def band(curves: list[tuple[np.ndarray, np.ndarray]], shares: bool) -> tuple[np.ndarray, ...]:
    """Return the steps, and at each the mean over the curves and its 95% bounds (NaN for one curve).

    The interval is Student's t, cut to [0, 1] for `shares`. Only curves that have a step count there.
    """
    at: dict[float, list[float]] = {}
    for x, y in curves:
        for step, value in zip(x, y, strict=True):
            at.setdefault(float(step), []).append(float(value))
    steps = sorted(at)
    found = [(seeds_interval if shares else t_interval)(at[step]) for step in steps]
    return np.array(steps), *(np.array([getattr(one, name) for one in found]) for name in ("mean", "lo", "hi"))


def _svg(panel: Panel, key: str, series: list[tuple[Arm, Any]], order: list[str]) -> str:
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    ax: Axes = figure.subplots()
    for arm, (x, mean, low, high) in series:
        colour = COLOURS[order.index(arm.label)]
        ax.plot(x, mean, color=colour, linewidth=1.8, label=arm.label, marker="o" if len(x) == 1 else "")
        if np.isfinite(low).any():
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    # With two seeds the bands are many times as wide as the curves. The axis fits the curves and cuts the bands.
    values = np.concatenate([mean for _, (_, mean, _, _) in series])
    width = [np.nanmax([high - mean, mean - low]) for _, (_, mean, low, high) in series if np.isfinite(low).any()]
    room = max(float(np.ptp(values)), 1e-3)
    margin = min(room, max(width, default=0.0)) + 0.05 * room
    ax.set_ylim(float(values.min()) - margin, float(values.max()) + margin)
    ax.set_xlabel("step")
    ax.set_ylabel(panel.label if key != panel.right else "level")
    ax.grid(alpha=0.25)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(order) > 1:
        ax.legend(fontsize="small", framealpha=0.7)
    buffer = io.StringIO()
    # Text stays text: this is smaller, searchable, and uses the page's font. The salt makes equal reports have equal
    # ids.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "agentrl"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'class="plot"', text[text.index("<svg") :], count=1)
