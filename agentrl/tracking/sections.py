"""Choose the heading under which a tracker shows a metric: `<section>/<its name in metrics.jsonl>`."""

from __future__ import annotations

SECTIONS: dict[str, tuple[str, ...]] = {  # the part of a metric's name before its first "/"
    "reward": (
        *("reward", "reward_std", "rewards", "frac_reward_zero_std", "no_signal", "solve_rate"),
        *("r_sys", "r_user", "user_proxy", "filtered"),
    ),
    "objective": (
        *("loss", "policy_loss", "kl", "clip_ratio", "entropy", "entropy_coef", "grad_norm", "lr"),
        *("logps", "logits", "mean_token_accuracy", "expert", "sampler", "diagnose"),
    ),
    "constraint": ("lambda", "ema", "tau", "slack", "violation_rate", "violation", "missing"),
    "annealing": ("anneal", "trace", "hint"),
    "tools": ("tools",),
    "lengths": ("completion",),
    "throughput": ("tokens", "tokens_per_s", "seconds", "epoch"),
}
OTHER = "other"
_SECTION_OF = {head: section for section, heads in SECTIONS.items() for head in heads}


def add_section(name: str) -> str:
    """Put a metric under its section: `lambda/sys` becomes `constraint/lambda/sys`. Other metrics go to `other`."""
    return f"{_SECTION_OF.get(name.split('/')[0], OTHER)}/{name}"
