"""Plot an attention analysis: where the attention lies, and how far training moved it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from agentrl.core.stats import Interval
from agentrl.report.plots import COLOURS

MASSES = {
    "centroid": "centroid",
    "far_mass": "farthest fifth",
    "near_mass": "closest fifth",
    "system_mass": "system",
    "user_mass": "user",
}


def plot_attention(
    table: Mapping[str, Mapping[str, Interval]], profiles: Mapping[str, Sequence[float]], path: Path
) -> None:
    """Plot attention mass by relative distance (left), and paired differences with 95% intervals (right)."""
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    for (name, mass), colour in zip(profiles.items(), COLOURS, strict=False):
        edges = [index / len(mass) for index in range(len(mass) + 1)]
        left.stairs(mass, edges, label=name, color=colour, linewidth=1.6)
    left.set(xlabel="relative distance (0: response onset, 1: first token)", ylabel="attention mass", yscale="log")
    left.set_title("Attention at response onset")
    left.legend(fontsize="small")
    changes = [table[name]["difference"] for name in MASSES]
    places = list(range(len(changes)))
    right.axvline(0, color="grey", linewidth=0.8)
    right.errorbar(
        [change.mean for change in changes],
        places,
        xerr=[[max(0.0, c.mean - c.lo) for c in changes], [max(0.0, c.hi - c.mean) for c in changes]],
        fmt="o",
        color=COLOURS[0],
        capsize=3,
    )
    right.set_yticks(places, list(MASSES.values()))
    right.invert_yaxis()
    right.set_xlabel("trained - base")
    right.set_title(f"Change, 95% intervals ({table['centroid']['difference'].n} prompts)")
    figure.savefig(path)
