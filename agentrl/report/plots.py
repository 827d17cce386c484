"""Plot the curves of one run as PNG files: one for each panel, and all of them in overview.png.

Figures are built without pyplot, so drawing changes no global state and needs no display.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

RAW, SMOOTH = "#9db8d6", "#1f4e8c"
COLOURS = ("#1f4e8c", "#c8553d", "#3d8c5a")
COLUMNS = 3


@dataclass(frozen=True)
class Panel:
    """One plot. `keys` share the left axis, `right` has its own scale; keys without values are not drawn."""

    name: str
    title: str
    label: str
    keys: tuple[str, ...]
    right: str | None = None
    smooth: bool = True
    shares: bool = False  # the values, and the bounds of their means, lie in [0, 1]


PANELS = (
    Panel("reward", "Reward", "mean reward of a rollout", ("reward",)),
    Panel("solve_rate", "Solve rate (training rollouts)", "share solved", ("solve_rate",), shares=True),
    Panel(
        "r_sys", "Reward of the system's side", "mean r_sys", ("r_sys", "r_sys/conflict", "r_sys/aligned"), shares=True
    ),
    Panel(
        "r_user",
        "Reward of the user's side",
        "mean r_user",
        ("r_user", "r_user/conflict", "r_user/aligned"),
        shares=True,
    ),
    Panel(
        "user_proxy",
        "Stand-in for r_user",
        "mean word overlap",
        ("user_proxy", "user_proxy/conflict", "user_proxy/aligned"),
        shares=True,
    ),
    Panel("violation_rate", "Replies below a threshold", "share of replies", ("violation_rate",), shares=True),
    Panel("filtered", "Degenerate replies left out", "share of replies", ("filtered",), shares=True),
    Panel("anneal", "Annealing", "fraction", ("anneal/call_scale", "anneal/kept"), right="anneal/level", smooth=False),
    Panel("mu", "Weight of the SFT term", "mu", ("anneal/mu",), smooth=False),
    Panel("expert_weight", "Shaped weight of an expert token", "mean weight", ("expert/weight",)),
    Panel(
        "expert_share", "The expert's part of the tokens trained on", "share of tokens", ("expert/share",), shares=True
    ),
    Panel("expert_advantage", "Advantage of the expert", "mean advantage", ("expert/advantage",)),
    Panel("kl", "KL to the reference policy", "nats per token", ("kl", "kl/prompt", "kl/trace")),
    Panel(
        "clip_ratio",
        "Ratio clip fraction",
        "share of tokens",
        ("clip_ratio", "clip_ratio/prompt", "clip_ratio/trace"),
        shares=True,
    ),
    Panel("sampler_kl", "KL of the sampler to the trainer", "nats per token", ("sampler/kl",)),
    Panel(
        "sampler_ratio",
        "Trainer over sampler, before truncation",
        "ratio of probabilities",
        ("sampler/ratio_mean", "sampler/ratio_max"),
    ),
    Panel(
        "diagnose_norms",
        "Gradient of each term",
        "norm",
        ("diagnose/norm_x", "diagnose/norm_h", "diagnose/norm_sft"),
        smooth=False,
    ),
    Panel(
        "diagnose_cosines",
        "Do the terms agree?",
        "cosine of gradients",
        ("diagnose/cos_x_h", "diagnose/cos_x_sft", "diagnose/cos_h_sft"),
        smooth=False,
    ),
    Panel(
        "diagnose_shift",
        "What the trace does to a rollout",
        "log p(y|x,h) - log p(y|x), nats per token",
        ("diagnose/shift_good", "diagnose/shift_bad"),
        smooth=False,
    ),
    Panel(
        "diagnose_improbable",
        "Push on tokens with p < 0.01",
        "share of the push on bad tokens",
        ("diagnose/improbable_x", "diagnose/improbable_h"),
        smooth=False,
        shares=True,
    ),
    Panel(
        "diagnose_pull",
        "Pull on good tokens",
        "mean |A| (1 - p)",
        ("diagnose/pull_good_x", "diagnose/pull_good_h"),
        smooth=False,
    ),
    Panel("tools_error_rate", "Tool errors", "share of calls", ("tools/error_rate",), shares=True),
    Panel("entropy", "Policy entropy", "nats per token", ("entropy", "entropy/prompt", "entropy/trace")),
    Panel("completion_mean_tokens", "Completion length", "tokens", ("completion/mean_tokens",)),
    Panel("grad_norm", "Gradient norm", "before clipping", ("grad_norm",)),
    Panel("lr", "Learning rate", "learning rate", ("lr",), smooth=False),
)


def plot_run(metrics: Sequence[dict[str, Any]], plots_dir: Path) -> list[Path]:
    """Draw every panel that `metrics` (the rows of metrics.jsonl) has values for; return the files written.

    The key "step" is the x axis. A row without a key, or with null or a non-finite value, is left out of that key's
    curve. Every key "loss/..." gets its own panel. If no row has a value, no file is written.
    """
    shown = [panel for panel in panels(metrics) if _has_values(metrics, panel)]
    if not shown:
        return []
    plots_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for panel in shown:
        figure = Figure(figsize=(6, 3.6), dpi=120, layout="constrained")
        _draw(figure.subplots(), metrics, panel)
        written.append(_save(figure, plots_dir / f"{panel.name}.png"))
    rows = math.ceil(len(shown) / COLUMNS)
    overview = Figure(figsize=(5 * COLUMNS, 3.2 * rows), dpi=100, layout="constrained")
    axes = overview.subplots(rows, COLUMNS, squeeze=False).ravel()
    for ax, panel in zip(axes, shown, strict=False):
        _draw(ax, metrics, panel)
    for ax in axes[len(shown) :]:
        ax.remove()
    written.append(_save(overview, plots_dir / "overview.png"))
    return written


def panels(metrics: Sequence[dict[str, Any]]) -> list[Panel]:
    """Return the panels that may be drawn: those above, and one for every key "loss/..."."""
    keys = {key for row in metrics for key in row}
    loss_panels = [
        Panel(key.replace("/", "_"), f"Loss: {key[5:]}", "loss", (key,)) for key in sorted(keys) if key[:5] == "loss/"
    ]
    constraints = sorted(key[7:] for key in keys if key[:7] == "lambda/")
    constraint_panels = [
        Panel(
            f"constraint_{name}", f"Constraint: {name}", "moving average", (f"ema/{name}", f"tau/{name}"), smooth=False
        )
        for name in constraints
    ]
    slacks = Panel(
        "slack", "Slack of the constraints", "slack; 0 or more keeps it", tuple(f"slack/{name}" for name in constraints)
    )
    multipliers = Panel(
        "lambda", "Multipliers", "lambda", tuple(f"lambda/{name}" for name in constraints), smooth=False
    )
    return [*PANELS[:2], *loss_panels, *constraint_panels, multipliers, slacks, *PANELS[2:]]


def _has_values(metrics: Sequence[dict[str, Any]], panel: Panel) -> bool:
    keys = panel.keys if panel.right is None else (*panel.keys, panel.right)
    return any(len(curve(metrics, key)[0]) for key in keys)


def curve(metrics: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and the finite values of one key."""
    points = [(row["step"], row[key]) for row in metrics if row.get("step") is not None and row.get(key) is not None]
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(y)]
    array = np.array(finite, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _draw(ax: Axes, metrics: Sequence[dict[str, Any]], panel: Panel) -> None:
    ax.set_title(panel.title)
    ax.set_xlabel("step")
    ax.set_ylabel(panel.label)
    ax.grid(alpha=0.25)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    lines = []
    for colour, key in zip(COLOURS, panel.keys, strict=False):
        x, y = curve(metrics, key)
        if not len(x):
            continue
        marker = "o" if len(x) == 1 else ""
        if panel.smooth and len(x) >= 10:
            alone = len(panel.keys) == 1
            ax.plot(x, y, color=RAW if alone else colour, alpha=1 if alone else 0.3, linewidth=1)
            colour, label = (SMOOTH, "smoothed") if alone else (colour, key)
            lines += ax.plot(x, _smooth(y), color=colour, linewidth=2, label=label)
        else:
            lines += ax.plot(x, y, color=colour, linewidth=1.8, marker=marker, label=key)
    if panel.right is not None:
        x, y = curve(metrics, panel.right)
        if len(x):
            right = ax.twinx()
            lines += right.step(x, y, where="post", color=COLOURS[2], linestyle="--", label=panel.right)
            right.set_ylabel("level")
            right.yaxis.set_major_locator(MaxNLocator(integer=True))
            right.set_ylim(-0.2, 4.2)
        ax.set_ylim(-0.05, 1.05)
    if len(panel.keys) > 1 or any(line.get_label() == "smoothed" for line in lines):
        ax.legend(handles=lines, fontsize="small", framealpha=0.7)


def _smooth(y: np.ndarray) -> np.ndarray:
    """Return the mean over a centred window of about a tenth of the curve; it narrows at the ends, so it never lags."""
    half = max(2, len(y) // 20)
    total = np.concatenate([[0.0], np.cumsum(y)])
    index = np.arange(len(y))
    reach = np.minimum(half, np.minimum(index, len(y) - 1 - index))
    return np.asarray((total[index + reach + 1] - total[index - reach]) / (2 * reach + 1))


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path
