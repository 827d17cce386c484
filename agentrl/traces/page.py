"""Make an HTML page about a file of traces: counts, reasons of rejections, lengths, and examples in colour."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import mean, median
from typing import Any

from agentrl.core.expert_trace import MAX_LEVEL, ExpertTrace
from agentrl.core.pages import render_template
from agentrl.traces.files import read_traces

EXAMPLES = 8


def render_traces(file: Path, reasons: Counter[str], coverage: dict[str, Any]) -> str:
    """Return one self-contained HTML page. All text from the data is escaped."""
    traces = list(read_traces(file).values())
    step = max(len(traces) // EXAMPLES, 1)
    return render_template(
        "agentrl.traces",
        "traces.html.jinja",
        title=file.name,
        counts={"traces": len(traces), "rejected": sum(reasons.values()), **coverage},
        reasons=reasons.most_common(),
        lengths=measure_lengths(traces),
        chunks=Counter(chunk.type for trace in traces for turn in trace.turns for chunk in turn.chunks).most_common(),
        examples=traces[::step][:EXAMPLES],
    )


def measure_lengths(traces: list[ExpertTrace]) -> list[tuple[str, float, float, float]]:
    """Return (what, mean, median, largest) over the traces, or over their turns if there are any."""
    columns = {
        "turns": [len(trace.turns) for trace in traces],
        "calls": [len(trace.calls) for trace in traces],
        "characters of reasoning": [sum(len(c.text) for t in trace.turns for c in t.chunks) for trace in traces],
        "characters of observations": [sum(len(o) for t in trace.turns for o in t.observations) for trace in traces],
    }
    columns |= {
        f"chunks of a turn at level L{level}": [len(turn.prefix(level)) for trace in traces for turn in trace.turns]
        for level in range(1, MAX_LEVEL + 1)
    }
    return [(name, mean(values), median(values), max(values)) for name, values in columns.items() if values]
