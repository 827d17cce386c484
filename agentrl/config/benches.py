"""The keys of each bench (group `bench`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from agentrl.config.checks import python_file, require
from agentrl.config.key import Among, Holds, key
from agentrl.config.traits import BenchKeys, Grades, refuse_directory, require_place

HELD_OUT = "Share of each kind of row held out for evaluation; 1 leaves no training rows."
DIVISION = "Seed of the train/test division."
CONFLICTING = ", half of them conflicting"
GENERATED = "Seed of the generator; apart from `seed` so that seeds share one dataset."
Rules = Literal["official", "corrected"]
CALL_RULES = ("docs/benches.md", "ours: whole words, no credit for failed calls")
Shares = Annotated[
    list[float],
    Holds(
        lambda shares: len(shares) == 4 and all(share >= 0 for share in shares) and abs(sum(shares) - 1) < 1e-6,
        "must be four shares (1 to 4 hops), none negative, that sum to 1",
    ),
]


def even(least: int) -> Holds:
    return Holds(
        lambda rows: rows >= least and rows % 2 == 0, f"must be even and at least {least}: half of them conflict"
    )


class Minihop(BenchKeys):
    loads = "agentrl.benches.minihop:MinihopBench"
    runs_code = sub_answers = True

    data_seed: int = key(GENERATED)
    train_tasks: int = key("Tasks in the training split.", ge=1)
    test_tasks: int = key("Tasks in the held-out split.", ge=1)
    train_hops: Shares = key("Share of 1, 2, 3 and 4-hop tasks in the training split.")
    test_hops: Shares = key("Share of 1, 2, 3 and 4-hop tasks in the test split.")


class Minihif(BenchKeys):
    loads = "agentrl.benches.minihif:MinihifBench"
    two_sided = True
    draw = 2

    data_seed: int = key(GENERATED)
    train_tasks: int = key(f"Tasks in the training split{CONFLICTING}.", ge=1)
    test_tasks: int = key(f"Tasks in the held-out split{CONFLICTING}.", ge=1)


class ToolHop(BenchKeys):
    loads = "agentrl.benches.toolhop:ToolHopBench"
    runs_code = sub_answers = True

    path: str | None = key("ToolHop.json (list or dict form); null downloads `hub_id`.")
    hub_id: str = key("Dataset repository on the hub.")
    scenario: Literal["direct", "mandatory", "free"] = key(
        "Prompt.", means=("no tools", "tools at every step", "tools where the model wants them")
    )
    rule: Literal["toolhop", "ftrl", "strict"] = key(
        "Answer correctness.", means=("official", "FTRL, MatchTIR, PACT", "exact tag")
    )
    rules: Rules = key("Rules of scoring.", means=CALL_RULES)
    test_fraction: float = key("Share of rows held out for evaluation; ToolHop ships no training split.", gt=0, lt=1)
    data_seed: int = key(DIVISION)

    def check_path(self) -> None:
        rule = "no such file; give the path of ToolHop.json, or null to download it from the hub"
        require_place(self.path, rule, "file")


class Ftrl(BenchKeys):
    loads = "agentrl.benches.ftrl:FtrlBench"
    runs_code = sub_answers = True

    path: str = key("A directory with FTRL's train and test files (.jsonl, or MatchTIR's .parquet), or one such file.")
    rules: Rules = key("Rules of scoring.", means=CALL_RULES)
    answer_tag: Literal["train", "always", "never"] = key(
        "Prompts that ask for <answer> tags.", means=("those of training, as in MatchTIR and PACT", "all", "none")
    )
    train_on_test: bool = key("Allow test rows in training; a file of test rows alone is divided then.")
    test_fraction: float = key("Share of rows held out where a file holds one split alone.", gt=0, lt=1)
    data_seed: int = key("Seed of that division.")

    def check_path(self) -> None:
        require_place(self.path, "no such file or directory; give FTRL's")


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


class Bfcl(BenchKeys):
    loads = "agentrl.benches.bfcl.bench:BfclBench"
    without_path = "of the bfcl-eval package"

    path: str | None = key("A copy of bfcl-eval's data directory, or one data file in it; null takes the package's.")
    categories: list[Annotated[str, Among((*BFCL_GROUPS, *BFCL_GROUPS["all"]))]] = key(
        "Categories, or groups of them; see docs/bfcl.md.", min_length=1
    )
    memory: Literal["played", "evidence"] = key(
        "Where test memories come from.",
        means=("the model plays beforehand (official)", "sentences that are the evidence (ours)"),
    )
    web: Literal["serpapi", "replay"] = key(
        "Web search.", means=("official, needs SERPAPI_API_KEY", "recorded hops, not official")
    )
    test_fraction: float = key("Share of items held out for evaluation; 1 leaves no training items.", gt=0, le=1)
    data_seed: int = key(DIVISION)

    def check_path(self) -> None:
        require_place(
            self.path, "no such file or directory; give bfcl-eval's data, or null to take the installed package's"
        )


class Suite(BenchKeys):
    """What all suites of hierarchical instruction following but the embedded one have in common."""

    two_sided = True
    grades: ClassVar[Grades] = "sys"

    def check_path(self) -> None:
        path: str | None = getattr(self, "path", None)
        require_place(path, f"no such file or directory; docs/hif.md says what bench={self.name} reads")


class HifSuite(Suite):
    """What the suites that a program grades have in common."""

    path: str = key("The suite's file or directory (docs/hif.md says which).")
    rules: Rules = key(
        "Rules of evaluation and of `agentrl score`.", means=("the suite's own", "ours; docs/hif.md lists both")
    )
    reward_rules: Rules = key(
        "Rules of the training reward.", means=("the suite's own", "an empty answer never passes")
    )
    test_fraction: float = key(HELD_OUT, gt=0, le=1)
    data_seed: int = key(DIVISION)


class VerIH(HifSuite):
    """Keys as in HifSuite."""

    loads = "agentrl.benches.hif.verih:VerIHBench"

    def check_training_rows(self) -> None:
        if not Path(self.path).expanduser().is_dir():  # which has a file of training rows
            super().check_training_rows()


class SysIFEval(HifSuite):
    """Keys as in HifSuite."""

    loads = "agentrl.benches.hif.sys_ifeval:SysIFEvalBench"


class TensorTrust(HifSuite):
    """Keys as in HifSuite."""

    loads = "agentrl.benches.hif.tensortrust:TensorTrustBench"


class IHEval(Suite):
    loads = "agentrl.benches.hif.iheval:IHEvalBench"

    path: str = key("The directory benchmark/ of your own copy of IHEval, whose licence forbids shipping it.")
    test_fraction: float = key(HELD_OUT, gt=0, le=1)
    data_seed: int = key(DIVISION)

    def check_path(self) -> None:
        super().check_path()
        file = Path(self.path).expanduser().is_file()
        require(not file, "bench.path", self.path, "is a file; give the directory benchmark/ of IHEval")


class RealGuardrails(Suite):
    loads = "agentrl.benches.hif.judged:RealGuardrailsBench"
    grades = "none"

    path: str = key("The directory with handwritten.jsonl and distractors.jsonl, or one of the two.")
    test_fraction: float = key(HELD_OUT, gt=0, le=1)
    data_seed: int = key(DIVISION)


class Pairs(Suite):
    loads = "agentrl.benches.hif.judged:PairsBench"
    grades = "none"

    path: str = key('A jsonl file of {"system", "user", "kind": "conflict" or "aligned"}; kind may be left out.')
    test_fraction: float = key(HELD_OUT, gt=0, le=1)
    data_seed: int = key(DIVISION)

    def check_path(self) -> None:
        super().check_path()
        refuse_directory(self.path)


class SystemCheck(Suite):
    loads = "agentrl.benches.hif.judged:SystemCheckBench"
    grades = "none"

    path: str | None = key("A jsonl file as in bench=pairs, with kinds; null downloads `hub_id`.")
    hub_id: str = key("Dataset repository on the hub.")
    train_tasks: Annotated[int, even(0)] = key(
        f"Rows of the training split{CONFLICTING}; fewer where the data holds fewer, 0 to evaluate alone."
    )
    test_tasks: Annotated[int, even(2)] = key(
        f"Rows of the test split{CONFLICTING}; its system prompts are in no training row."
    )
    data_seed: int = key("Seed of the draw and of the division.")

    def check_path(self) -> None:
        super().check_path()
        refuse_directory(self.path)

    def check_training_rows(self) -> None:
        require(self.train_tasks > 0, "bench.train_tasks", 0, "leaves no row to train on; raise it")


class CustomBench(BenchKeys):
    """A bench of the user's own, in a file outside this package."""

    path: str = key("A Python file of yours whose function load(config) returns the bench (docs/extending.md).")
    options: dict[str, Any] = key("Keys of your own for that file; nothing else checks them.")

    def check_path(self) -> None:
        python_file("bench.path", self.path)


BENCHES: dict[str, type[BenchKeys]] = {
    "minihop": Minihop,
    "toolhop": ToolHop,
    "ftrl": Ftrl,
    "bfcl": Bfcl,
    "minihif": Minihif,
    "verih": VerIH,
    "sys_ifeval": SysIFEval,
    "tensortrust": TensorTrust,
    "iheval": IHEval,
    "systemcheck": SystemCheck,
    "realguardrails": RealGuardrails,
    "pairs": Pairs,
    "custom": CustomBench,
}
