"""What the keys of a bench may hold, and what each bench asks of the rest of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentrl.config.algos import TRACED, Dpo, Evaluate, FocalLora, Grpo, Hipo, Sft, SplitSoftmax
from agentrl.config.benches import (
    BFCL_GROUPS,
    Bfcl,
    CustomBench,
    Ftrl,
    HifConfig,
    IHEval,
    Minihif,
    Minihop,
    Pairs,
    RealGuardrails,
    SystemCheck,
    ToolHop,
    VerIH,
)
from agentrl.config.checks import python_file, require
from agentrl.config.load import suggest
from agentrl.config.schema import Config

BENCH_CHOICES: dict[str, tuple[str, ...]] = {
    "bench.scenario": ("direct", "mandatory", "free"),
    "bench.rule": ("toolhop", "ftrl", "strict"),
    "bench.answer_tag": ("train", "always", "never"),
    "bench.rules": ("official", "mended"),
    "bench.reward_rules": ("official", "mended"),
    "bench.memory": ("played", "evidence"),
    "bench.web": ("serpapi", "replay"),
}
JUDGED = Pairs | SystemCheck | RealGuardrails  # suites that no program grades


def validate_bench(config: Config) -> list[str]:
    """What a run asks of its bench; warnings. Raises UserError."""
    validate_data(config.bench)
    two_sided = isinstance(config.bench, Minihif | HifConfig)
    ungraded = config.judge.name == "program" and isinstance(config.bench, JUDGED)
    if isinstance(config.algo, Hipo | Dpo | SplitSoftmax | FocalLora):
        two_rule = "has one reward, the algorithm needs a system's and a user's; set bench=minihif or another HIF suite"
        require(two_sided, "bench", config.bench.name, two_rule)
        judge_rule = f"no program grades bench={config.bench.name}; choose judge=openai, local or distilled"
        require(not ungraded, "judge", config.judge.name, judge_rule)
    elif two_sided:
        tools_rule = (
            f"has no tools for algo={config.algo.name}; choose algo=hipo, sys_only, user_only, fixed_lambda, dpo, "
            "split_softmax, focal_lora or sft; agentrl eval evaluates it"
        )
        require(isinstance(config.algo, Sft | Evaluate), "bench", config.bench.name, tools_rule)
    _training_rows(config)
    if isinstance(config.bench, ToolHop) and config.bench.scenario == "direct":
        tools = "no tools means no expert traces; set bench.scenario=mandatory or free"
        traceless = isinstance(config.algo, Grpo) and not isinstance(config.algo, TRACED)
        require(traceless, "bench.scenario", "direct", f"algo={config.algo.name}: {tools}")
        answer_rule = "no tools means no calls to match; set reward=answer, or bench.scenario=mandatory or free"
        require(config.reward.name == "answer", "bench.scenario", "direct", answer_rule)
    if ungraded:
        return [
            f"judge=program: no program grades bench={config.bench.name}, so its replies are played and have neither "
            "r_sys nor r_user; judge=openai, local or distilled grades them"
        ]
    return []


def _training_rows(config: Config) -> None:
    """An evaluation suite has no training split until some of its rows are left to it."""
    trains = not isinstance(config.algo, Evaluate | SplitSoftmax)
    whole = isinstance(config.bench, HifConfig | Bfcl) and getattr(config.bench, "test_fraction", 0) == 1
    own_split = isinstance(config.bench, VerIH) and Path(config.bench.path).expanduser().is_dir()
    rows_rule = "leaves no row to train on; lower it, e.g. to 0.2, or evaluate alone (agentrl eval)"
    require(not (trains and whole and not own_split), "bench.test_fraction", 1, rows_rule)
    drawn = not isinstance(config.bench, SystemCheck) or config.bench.train_tasks > 0
    require(drawn or not trains, "bench.train_tasks", 0, "leaves no row to train on; raise it")


def validate_data(bench: Any) -> None:
    """The bench's own keys, whatever is done with it. Raises UserError."""
    for key, allowed in BENCH_CHOICES.items():
        value = getattr(bench, key.removeprefix("bench."), allowed[0])
        require(value in allowed, key, value, f"choose from {', '.join(allowed)}")
    if isinstance(bench, Minihif):
        require(bench.path is None, "bench.path", bench.path, "minihif is generated; set null")
        for key in ("train_tasks", "test_tasks"):
            require(getattr(bench, key) >= 1, f"bench.{key}", getattr(bench, key), "must be at least 1")
    if isinstance(bench, Minihop):
        require(bench.path is None, "bench.path", bench.path, "minihop is generated; set null, or bench=toolhop")
        for key in ("train_tasks", "test_tasks"):
            require(getattr(bench, key) >= 1, f"bench.{key}", getattr(bench, key), "must be at least 1")
        for key in ("train_hops", "test_hops"):
            shares = getattr(bench, key)
            whole = len(shares) == 4 and all(s >= 0 for s in shares) and abs(sum(shares) - 1) < 1e-6
            require(whole, f"bench.{key}", shares, "four shares (1 to 4 hops), none negative, that sum to 1")
    if isinstance(bench, ToolHop | Ftrl):
        require(0 < bench.test_fraction < 1, "bench.test_fraction", bench.test_fraction, "must lie in (0, 1)")
    if isinstance(bench, ToolHop) and bench.path is not None:
        exists_rule = "no such file; give the path of ToolHop.json, or null to download it from the hub"
        require(Path(bench.path).expanduser().is_file(), "bench.path", bench.path, exists_rule)
    if isinstance(bench, Ftrl):
        exists_rule = "no such file or directory; give FTRL's"
        require(Path(bench.path).expanduser().exists(), "bench.path", bench.path, exists_rule)
    if isinstance(bench, HifConfig):
        _hif(bench)
    if isinstance(bench, Bfcl):
        _bfcl(bench)
    if isinstance(bench, CustomBench):
        python_file("bench.path", bench.path)


def _bfcl(bench: Bfcl) -> None:
    require(0 < bench.test_fraction <= 1, "bench.test_fraction", bench.test_fraction, "must lie in (0, 1]")
    known = [*BFCL_GROUPS, *BFCL_GROUPS["all"]]
    require(len(bench.categories) > 0, "bench.categories", "[]", f"name one or more of {', '.join(known)}")
    for word in bench.categories:
        require(word in known, "bench.categories", word, f"no such category{suggest(word, known)}")
    if bench.path is not None:
        exists_rule = "no such file or directory; give bfcl-eval's data, or null to take the installed package's"
        require(Path(bench.path).expanduser().exists(), "bench.path", bench.path, exists_rule)


def _hif(bench: HifConfig) -> None:
    if bench.path is not None:
        place = Path(bench.path).expanduser()
        exists_rule = f"no such file or directory; docs/hif.md says what bench={bench.name} reads"
        require(place.exists(), "bench.path", bench.path, exists_rule)
        one_file = isinstance(bench, Pairs | SystemCheck)
        require(
            not (one_file and place.is_dir()), "bench.path", bench.path, "is a directory; give the jsonl file in it"
        )
        folder_rule = "is a file; give the directory benchmark/ of IHEval"
        require(not (isinstance(bench, IHEval) and place.is_file()), "bench.path", bench.path, folder_rule)
    if isinstance(bench, SystemCheck):
        for key, least in (("train_tasks", 0), ("test_tasks", 2)):
            pairs = getattr(bench, key) >= least and getattr(bench, key) % 2 == 0
            pairs_rule = f"must be even and at least {least}: half of them conflict"
            require(pairs, f"bench.{key}", getattr(bench, key), pairs_rule)
    else:
        require(0 < bench.test_fraction <= 1, "bench.test_fraction", bench.test_fraction, "must lie in (0, 1]")
