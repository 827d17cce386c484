"""The keys of each bench (group `bench`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from agentrl.config.checks import require, require_python_file
from agentrl.config.key import Among, Holds, key
from agentrl.config.side_benches import HarmBench, IFBench, MmluRedux, WildJailbreak, XSTest
from agentrl.config.traits import BenchKeys, Grades, refuse_directory, require_place

HELD_OUT = "Share of the rows of each kind held out for evaluation; 1 leaves no training rows."
DIVISION = "Seed of the division into training and test split."
CONFLICTING = ", half of them conflicting"
GENERATED = "Seed of the generated data. It is separate from `seed`, so runs with other seeds share the data."
Rules = Literal["official", "corrected"]
CALL_RULES = ("the bench's own, see docs/benches.md", "ours: whole words must match, and failed calls earn nothing")
TraceQuality = Literal["clean", "verbose", "noisy"]


def must_be_shares(count: int, of: str) -> Holds:
    return Holds(
        lambda shares: len(shares) == count and all(share >= 0 for share in shares) and abs(sum(shares) - 1) < 1e-6,
        f"must be {of}, none negative, that sum to 1",
    )


HopShares = Annotated[list[float], must_be_shares(4, "four shares (1 to 4 hops)")]
CallShares = Annotated[list[float], must_be_shares(6, "six shares (1 to 6 calls)")]


def must_be_even(least: int) -> Holds:
    return Holds(
        lambda rows: rows >= least and rows % 2 == 0, f"must be even and at least {least}: half of them conflict"
    )


class Minihop(BenchKeys):
    loads = "agentrl.benches.minihop:MinihopBench"
    runs_code = sub_answers = True

    data_seed: int = key(GENERATED)
    train_tasks: int = key("Tasks in the training split.", ge=1)
    test_tasks: int = key("Tasks in the held-out split.", ge=1)
    train_hops: HopShares = key("Shares of tasks with 1, 2, 3 and 4 hops in the training split.")
    test_hops: HopShares = key("Shares of tasks with 1, 2, 3 and 4 hops in the test split.")
    forbid: float | None = key(
        "Share of tasks whose system prompt forbids a tool that the answer needs; the others forbid a distracting "
        "tool. null has no system prompts.",
        ge=0,
        le=1,
        older=None,
    )


class MinihopHard(BenchKeys):
    loads = "agentrl.benches.minihop_hard:MinihopHardBench"
    runs_code = sub_answers = True

    data_seed: int = key(GENERATED)
    train_tasks: int = key("Tasks in the training split.", ge=1)
    test_tasks: int = key("Tasks in the held-out split.", ge=1)
    train_calls: CallShares = key("Shares of tasks with 1, 2, 3, 4, 5 and 6 right calls in the training split.")
    test_calls: CallShares = key("Shares of tasks with 1, 2, 3, 4, 5 and 6 right calls in the test split.")
    joins: float = key("Share of tasks with two chains, which a tool with two arguments joins.", ge=0, le=1)
    former: float = key("Share of hops that need the optional argument.", ge=0, le=1)
    renamed: float = key("Share of calls that fail first: the tool knows the entity under another name.", ge=0, le=1)
    distractors: int = key("Tools of a task that it does not need.", ge=0, le=8)
    name_words: int = key(
        "Words in the name of an entity. Names of one word are in both splits, no name of two words is.", ge=1, le=2
    )
    trace_quality: TraceQuality = key(
        "How the expert traces are written.",
        means=("in few words", "in many words", "in few words, and a fifth of the steps are wrong"),
    )


class Minihif(BenchKeys):
    loads = "agentrl.benches.minihif:MinihifBench"
    two_sided = True
    tools = False
    draw = 2

    data_seed: int = key(GENERATED)
    train_tasks: int = key(f"Tasks in the training split{CONFLICTING}.", ge=1)
    test_tasks: int = key(f"Tasks in the held-out split{CONFLICTING}.", ge=1)
    free: float = key(
        "Share of the conflicts in which the rule can be kept at no cost to the user.", ge=0, le=1, older=0.0
    )


class ToolHop(BenchKeys):
    loads = "agentrl.benches.toolhop:ToolHopBench"
    runs_code = sub_answers = True

    path: str | None = key("ToolHop.json, a list or a dict; null downloads `hub_id`.", place="data")
    hub_id: str = key("Dataset repository on the hub.")
    scenario: Literal["direct", "mandatory", "free"] = key(
        "What the prompt says about tools.",
        means=("there are none", "use one at every step", "use them as you like"),
    )
    rule: Literal["toolhop", "ftrl", "strict"] = key(
        "When a final answer is correct.",
        means=("the official rule", "the rule of FTRL, MatchTIR and PACT", "the <answer> tag holds exactly the answer"),
    )
    rules: Rules = key("Rules of scoring.", means=CALL_RULES)
    test_fraction: float = key(
        "Share of rows held out for evaluation; ToolHop ships no training split. 1 leaves no training rows.", gt=0, le=1
    )
    data_seed: int = key(DIVISION)

    def check_path(self) -> None:
        rule = "no such file; give the path of ToolHop.json, or null to download it from the hub"
        require_place(self.path, rule)
        refuse_directory(self.path)


class Ftrl(BenchKeys):
    loads = "agentrl.benches.ftrl:FtrlBench"
    runs_code = sub_answers = True

    path: str = key(
        "A directory with FTRL's train and test files (.jsonl, or MatchTIR's .parquet), or one such file.", place="data"
    )
    rules: Rules = key("Rules of scoring.", means=CALL_RULES)
    answer_tag: Literal["train", "always", "never"] = key(
        "Which prompts ask for <answer> tags.", means=("those of training, as in MatchTIR and PACT", "all", "none")
    )
    train_on_test: bool = key("Allow test rows in training; a file with only test rows is then divided.")
    test_fraction: float = key("Share of rows held out if the file has only one split.", gt=0, lt=1)
    data_seed: int = key("Seed of that division.")

    def check_path(self) -> None:
        require_place(self.path, "no such file or directory; give FTRL's data")


_MULTI_TURN = ["multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context"]
_MEMORY = ["memory_kv", "memory_rec_sum", "memory_vector"]
_WEB_SEARCH = ["web_search_base", "web_search_no_snippet"]
# Groups of `bench.categories` -> their categories.
BFCL_GROUPS: dict[str, list[str]] = {
    "all": [*_MULTI_TURN, *_MEMORY, *_WEB_SEARCH],
    "multi_turn": _MULTI_TURN,
    "memory": _MEMORY,
    "web_search": _WEB_SEARCH,
}


class Bfcl(BenchKeys):
    loads = "agentrl.benches.bfcl.bench:BfclBench"
    without_path = "of the bfcl-eval package"

    path: str | None = key(
        "A copy of bfcl-eval's data directory, or one data file of it; null takes the data of the installed package.",
        place="data",
    )
    categories: list[Annotated[str, Among((*BFCL_GROUPS, *BFCL_GROUPS["all"]))]] = key(
        "Categories or groups of categories (docs/bfcl.md).", min_length=1
    )
    memory: Literal["played", "evidence"] = key(
        "Where the memory that a test item starts with comes from.",
        means=("the model writes it in earlier episodes (official)", "it holds the sentences with the answer (ours)"),
    )
    encoder: str = key(
        "Directory or hub id of the sentence encoder of memory_vector.",
        place="weights",
        older="sentence-transformers/all-MiniLM-L6-v2",
    )
    web: Literal["serpapi", "replay"] = key(
        "How web search works.",
        means=("through SerpApi, needs SERPAPI_API_KEY (official)", "recorded pages are replayed (ours)"),
    )
    test_fraction: float = key("Share of items held out for evaluation; 1 leaves no training items.", gt=0, le=1)
    data_seed: int = key(DIVISION)

    def check_path(self) -> None:
        require_place(
            self.path, "no such file or directory; give bfcl-eval's data, or null for the installed package's"
        )


class Suite(BenchKeys):
    """What all suites of hierarchical instruction following have in common, except minihif."""

    two_sided = True
    tools = False
    grades: ClassVar[Grades] = "sys"

    def check_path(self) -> None:
        path: str | None = getattr(self, "path", None)
        require_place(path, f"no such file or directory; docs/hif.md says what bench={self.name} reads")


class HifSuite(Suite):
    """What the suites graded by a program have in common."""

    path: str = key("The suite's file or directory, see docs/hif.md.", place="data")
    rules: Rules = key(
        "Rules of evaluation and of `agentrl score`.", means=("the suite's own", "ours, see docs/hif.md")
    )
    reward_rules: Rules = key(
        "Rules of the training reward.", means=("the suite's own", "ours: an empty answer never passes")
    )
    test_fraction: float = key(HELD_OUT, gt=0, le=1)
    data_seed: int = key(DIVISION)


class VerIH(HifSuite):
    """Keys as in HifSuite."""

    loads = "agentrl.benches.hif.verih:VerIHBench"

    def check_training_rows(self) -> None:
        if not Path(self.path).expanduser().is_dir():  # a directory has its own file of training rows
            super().check_training_rows()


class SysIFEval(HifSuite):
    """Keys as in HifSuite."""

    loads = "agentrl.benches.hif.sys_ifeval:SysIFEvalBench"


class TensorTrust(HifSuite):
    """Keys as in HifSuite."""

    loads = "agentrl.benches.hif.tensortrust:TensorTrustBench"


class IHEval(Suite):
    loads = "agentrl.benches.hif.iheval:IHEvalBench"

    path: str = key(
        "The directory benchmark/ of your own copy of IHEval; its licence forbids us to ship one.", place="data"
    )
    test_fraction: float = key(HELD_OUT, gt=0, le=1)
    data_seed: int = key(DIVISION)

    def check_path(self) -> None:
        super().check_path()
        file = Path(self.path).expanduser().is_file()
        require(not file, "bench.path", self.path, "is a file; give the directory benchmark/ of IHEval")


class RealGuardrails(Suite):
    loads = "agentrl.benches.hif.judged:RealGuardrailsBench"
    grades = "none"

    path: str = key("The directory with handwritten.jsonl and distractors.jsonl, or one of these files.", place="data")
    test_fraction: float = key(HELD_OUT, gt=0, le=1)
    data_seed: int = key(DIVISION)


class Pairs(Suite):
    loads = "agentrl.benches.hif.judged:PairsBench"
    grades = "none"

    path: str = key(
        'A jsonl file of {"system", "user", "kind"}; kind is "conflict" or "aligned", or is left out.', place="data"
    )
    test_fraction: float = key(HELD_OUT, gt=0, le=1)
    data_seed: int = key(DIVISION)

    def check_path(self) -> None:
        super().check_path()
        refuse_directory(self.path)


class SystemCheck(Suite):
    loads = "agentrl.benches.hif.judged:SystemCheckBench"
    grades = "none"

    path: str | None = key(
        "A jsonl file as of bench=pairs, where each line has a kind; null downloads `hub_id`.", place="data"
    )
    hub_id: str = key("Dataset repository on the hub.")
    train_tasks: Annotated[int, must_be_even(0)] = key(
        f"Rows of the training split{CONFLICTING}; fewer if the data has fewer, 0 to evaluate only."
    )
    test_tasks: Annotated[int, must_be_even(2)] = key(
        f"Rows of the test split{CONFLICTING}; no training row has one of its system prompts."
    )
    data_seed: int = key("Seed of the choice of rows and of their division.")

    def check_path(self) -> None:
        super().check_path()
        refuse_directory(self.path)

    def check_training_rows(self) -> None:
        require(self.train_tasks > 0, "bench.train_tasks", 0, "leaves no row to train on; set 2 or more")


class CustomBench(BenchKeys):
    """The user's own bench, in a file outside this package."""

    path: str = key("Your Python file whose function load(config) returns the bench (docs/extending.md).", place="data")
    options: dict[str, Any] = key("Your own keys for that file; agentrl does not check them.")

    def check_path(self) -> None:
        require_python_file("bench.path", self.path)


BENCHES: dict[str, type[BenchKeys]] = {
    "minihop": Minihop,
    "minihop_hard": MinihopHard,
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
    "mmlu_redux": MmluRedux,
    "harmbench": HarmBench,
    "xstest": XSTest,
    "wildjailbreak": WildJailbreak,
    "ifbench": IFBench,
    "custom": CustomBench,
}
