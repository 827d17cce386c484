"""Types and documentation of the keys of each bench (group `bench`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional  # omegaconf reads Optional, not X | None

from agentrl.config.key import key

HELD_OUT = "Share of each kind of row held out for evaluation, in (0, 1]; 1 leaves no training rows."


@dataclass
class Minihop:
    name: str = key("Bench.")
    path: Optional[str] = key("Unused: minihop is generated; must be null.")
    data_seed: int = key("Seed of the generator; apart from `seed` so that seeds share one dataset.")
    train_tasks: int = key("Tasks in the training split.")
    test_tasks: int = key("Tasks in the held-out split.")
    train_hops: list[float] = key("Share of 1, 2, 3 and 4-hop tasks in the training split; sums to 1.")
    test_hops: list[float] = key("Share of 1, 2, 3 and 4-hop tasks in the test split; sums to 1.")


@dataclass
class Minihif:
    name: str = key("Bench.")
    path: Optional[str] = key("Unused: minihif is generated; must be null.")
    data_seed: int = key("Seed of the generator; apart from `seed` so that seeds share one dataset.")
    train_tasks: int = key("Tasks in the training split, half of them conflicting.")
    test_tasks: int = key("Tasks in the held-out split, half of them conflicting.")


@dataclass
class ToolHop:
    name: str = key("Bench.")
    path: Optional[str] = key("ToolHop.json (list or dict form); null downloads `hub_id`.")
    hub_id: str = key("Dataset repository on the hub.")
    scenario: str = key("Prompt: direct (no tools), mandatory (tools at every step) or free.")
    rule: str = key("Answer correctness: 'toolhop' (official), 'ftrl' (FTRL, MatchTIR, PACT) or 'strict' (exact tag).")
    rules: str = key("'official', or 'mended' (ours: whole words, no credit for failed calls); docs/benches.md.")
    test_fraction: float = key("Share of rows held out for evaluation, in (0, 1); ToolHop ships no training split.")
    data_seed: int = key("Seed of the train/test division.")


@dataclass
class Ftrl:
    name: str = key("Bench.")
    path: str = key("A directory with FTRL's train and test files (.jsonl, or MatchTIR's .parquet), or one such file.")
    rules: str = key("'official', or 'mended' (ours: whole words, no credit for failed calls); docs/benches.md.")
    answer_tag: str = key("Prompts that ask for <answer> tags: 'train' (as in MatchTIR and PACT), 'always' or 'never'.")
    train_on_test: bool = key("Allow test rows in training; a file of test rows alone is divided then.")
    test_fraction: float = key("Share of rows held out where a file holds one split alone, in (0, 1).")
    data_seed: int = key("Seed of that division.")


@dataclass
class Bfcl:
    name: str = key("Bench.")
    path: Optional[str] = key("A copy of bfcl-eval's data directory, or one data file in it; null takes the package's.")
    categories: list[str] = key("Categories, or the groups multi_turn, memory, web_search, all; see docs/bfcl.md.")
    memory: str = key("Test memories: 'played' by the model beforehand (official) or 'evidence' sentences (ours).")
    web: str = key("Web search: 'serpapi' (official, needs SERPAPI_API_KEY) or 'replay' (recorded hops, not official).")
    test_fraction: float = key("Share of items held out for evaluation, in (0, 1]; 1 leaves no training items.")
    data_seed: int = key("Seed of the train/test division.")


_MULTI_TURN = ["multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context"]
_MEMORY = ["memory_kv", "memory_rec_sum", "memory_vector"]
_WEB_SEARCH = ["web_search_base", "web_search_no_snippet"]
# What a word of `bench.categories` stands for; a category stands for itself.
BFCL_GROUPS: dict[str, list[str]] = {
    "all": [*_MULTI_TURN, *_MEMORY, *_WEB_SEARCH],
    "multi_turn": _MULTI_TURN,
    "memory": _MEMORY,
    "web_search": _WEB_SEARCH,
}


@dataclass
class HifSuite:
    """What the suites of hierarchical instruction following that a program grades have in common."""

    name: str = key("Bench.")
    path: str = key("The suite's file or directory (docs/hif.md says which).")
    rules: str = key("Rules of evaluation and of `agentrl score`: 'official' or 'mended' (docs/hif.md lists both).")
    reward_rules: str = key("Rules of the training reward: 'mended' (an empty answer never passes) or 'official'.")
    test_fraction: float = key(HELD_OUT)
    data_seed: int = key("Seed of the train/test division.")


class VerIH(HifSuite):
    """Keys as in HifSuite."""


class SysIFEval(HifSuite):
    """Keys as in HifSuite."""


class TensorTrust(HifSuite):
    """Keys as in HifSuite."""


@dataclass
class IHEval:
    name: str = key("Bench.")
    path: str = key("The directory benchmark/ of your own copy of IHEval, whose licence forbids shipping it.")
    test_fraction: float = key(HELD_OUT)
    data_seed: int = key("Seed of the train/test division.")


@dataclass
class RealGuardrails:
    name: str = key("Bench.")
    path: str = key("The directory with handwritten.jsonl and distractors.jsonl, or one of the two.")
    test_fraction: float = key(HELD_OUT)
    data_seed: int = key("Seed of the train/test division.")


@dataclass
class Pairs:
    name: str = key("Bench.")
    path: str = key('A jsonl file of {"system", "user", "kind": "conflict" or "aligned"}; kind may be left out.')
    test_fraction: float = key(HELD_OUT)
    data_seed: int = key("Seed of the train/test division.")


@dataclass
class SystemCheck:
    name: str = key("Bench.")
    path: Optional[str] = key("A jsonl file as in bench=pairs, with kinds; null downloads `hub_id`.")
    hub_id: str = key("Dataset repository on the hub.")
    train_tasks: int = key(
        "Rows of the training split, half of them conflicting; fewer where the data holds fewer, 0 to evaluate alone."
    )
    test_tasks: int = key(
        "Rows of the test split, half of them conflicting; its system prompts are in no training row."
    )
    data_seed: int = key("Seed of the draw and of the division.")


@dataclass
class CustomBench:
    """A bench of the user's own, in a file outside this package."""

    name: str = key("Bench.")
    path: str = key("A Python file of yours whose function load(config) returns the bench (docs/extending.md).")
    options: dict[str, Any] = key("Keys of your own for that file; nothing else checks them.")


HifConfig = VerIH | SysIFEval | TensorTrust | IHEval | SystemCheck | RealGuardrails | Pairs
HIF_BENCHES: dict[str, type] = {
    "verih": VerIH,
    "sys_ifeval": SysIFEval,
    "tensortrust": TensorTrust,
    "iheval": IHEval,
    "systemcheck": SystemCheck,
    "realguardrails": RealGuardrails,
    "pairs": Pairs,
}
BENCHES: dict[str, type] = {
    "minihop": Minihop,
    "toolhop": ToolHop,
    "ftrl": Ftrl,
    "bfcl": Bfcl,
    "minihif": Minihif,
    **HIF_BENCHES,
    "custom": CustomBench,
}
