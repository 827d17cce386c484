"""Write the model card of a run: what the weights are, how they were trained, and the results with intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from agentrl.core.stats import Interval
from agentrl.core.version import __version__
from agentrl.report.markdown import cell, markdown_table
from agentrl.store.run import RunDirectory


def model_card(run: RunDirectory, weights: Path, repository: str) -> str:
    """Return the README.md for the hub. `weights` holds an adapter or full weights."""
    summary = json.loads(run.summary_path.read_text(encoding="utf-8"))
    environment = json.loads(run.environment_path.read_text(encoding="utf-8"))
    config = run.config()
    adapter = (weights / "adapter_config.json").is_file()
    base = config.model.path if _is_hub_id(config.model.path) else None
    head: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["agentrl", "trl", config.algo.name, config.bench.name],
    }
    if base is not None:
        head |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    revision = f" (revision {config.model.revision})" if base is not None and config.model.revision else ""
    git = environment.get("git") or {}
    changed = " with uncommitted changes" if git.get("diff") else ""
    commit = f", commit `{git['commit']}`{changed}" if git.get("commit") else ""
    packages = {name: environment["packages"].get(name) for name in ("torch", "transformers", "trl", "peft")}
    command = " ".join(str(word) for word in [Path(environment["command"][0]).name, *environment["command"][1:]])
    parts = [
        "---\n" + yaml.safe_dump(head, sort_keys=False) + "---",
        f"# {repository.rpartition('/')[2]}",
        f"{'A LoRA adapter for' if adapter else 'Full weights, trained from'} "
        f"{base or config.model.name}{revision} with {config.algo.name} on {config.bench.name} by agentrl: "
        f"{summary['steps']} updates, {summary['tokens']['seen']:,} tokens, seed {config.seed}, "
        f"{summary['wall_s']:,.0f} s in all.",
        "## Results",
        results_table(summary["eval"]),
        "Mean [95% interval] over the test items of this one run, clustered; the difference is paired by item.",
        "## How it was trained",
        f"`{command}`",
        f"agentrl {__version__}{commit}; "
        + ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        + ". `agentrl_config.yaml` holds every value, `agentrl_summary.json` all results.",
        "## Configuration",
        "```yaml\n" + run.config_path.read_text(encoding="utf-8").strip() + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def results_table(evaluation: dict[str, Any]) -> str:
    """Return `eval` of summary.json as a Markdown table: a row for each metric, a column for each phase."""
    phases = [phase for phase in ("before", "after", "difference") if evaluation.get(phase)]
    names = list(dict.fromkeys(name for phase in phases for name in evaluation[phase]))
    rows = []
    for name in names:
        found = [evaluation[phase].get(name) for phase in phases]
        items = {str(interval["n"]) for interval in found if interval}
        cells = [
            cell(interval and Interval.from_dict(interval), phase == "difference")
            for interval, phase in zip(found, phases, strict=True)
        ]
        rows.append([name, *cells, "/".join(sorted(items))])
    return markdown_table(["metric", *phases, "items"], rows) if rows else "The run was not evaluated."


def _is_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).exists()
