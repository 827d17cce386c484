"""Make saved views of a W&B project for PACT and HIPO with the wandb-workspaces library."""

from __future__ import annotations

from typing import Any

from agentrl.tracking.sections import add_section

# algorithm -> heading -> panel title -> metrics of metrics.jsonl (timing.jsonl for the throughput)
Headings = dict[str, dict[str, tuple[str, ...]]]
COMMON: Headings = {
    "Lengths and throughput": {
        "Completion length, tokens": ("completion/mean_tokens", "completion/max_tokens"),
        "Truncated completions": ("completion/truncated",),
        "Tokens per second": ("tokens_per_s",),
    },
    "Optimisation": {
        "KL to the reference policy": ("kl",),
        "Ratio clip fraction": ("clip_ratio",),
        "Policy entropy": ("entropy",),
        "Gradient norm": ("grad_norm",),
        "Learning rate": ("lr",),
    },
}
VIEWS: dict[str, Headings] = {
    "pact": {
        "Reward": {
            "Reward": ("reward",),
            "Solve rate (training rollouts)": ("solve_rate",),
            "Groups whose rewards are all equal": ("frac_reward_zero_std",),
        },
        "Objective terms": {
            "Loss": ("loss/total",),
            "Policy gradient": ("loss/rl",),
            "Supervised on the trace": ("loss/sft",),
            "KL by context": ("kl/prompt", "kl/trace"),
            "Ratio clip fraction by context": ("clip_ratio/prompt", "clip_ratio/trace"),
            "Policy entropy by context": ("entropy/prompt", "entropy/trace"),
        },
        "Annealing": {
            "Scale of tool calls": ("anneal/call_scale",),
            "Reasoning level": ("anneal/level",),
            "Anchored prompts": ("anneal/anchored",),
            "Prompts whose trace is cut or not shown": ("trace/cut", "trace/none"),
        },
        "Tools": {"Failed calls": ("tools/error_rate",), "Calls per rollout": ("tools/calls",)},
        **COMMON,
    },
    "hipo": {
        "Constraint and multiplier": {
            "Multiplier": ("lambda/sys",),
            "Moving average of r_sys against tau": ("ema/sys", "tau/sys"),
            "Replies below a threshold": ("violation_rate", "violation_rate/conflict", "violation_rate/aligned"),
        },
        "Reward": {
            "System's side": ("r_sys", "r_sys/conflict", "r_sys/aligned"),
            "User's side": ("r_user", "r_user/conflict", "r_user/aligned"),
            "Degenerate replies left out": ("filtered",),
            "Verdicts missing": ("missing/sys", "missing/user"),
        },
        "Objective terms": {"Loss": ("loss/total",)},
        **COMMON,
    },
}


def workspace(algo: str, entity: str, project: str) -> Any:
    """Build the view of `algo` (a key of VIEWS) as a wandb_workspaces Workspace, and do not save it."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    sections = [
        workspaces.Section(
            name=heading,
            panels=[
                reports.LinePlot(title=title, x="step", y=[add_section(metric) for metric in metrics])
                for title, metrics in panels.items()
            ],
            is_open=True,
        )
        for heading, panels in VIEWS[algo].items()
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"agentrl {algo.upper()}",
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis="step"),
    )
