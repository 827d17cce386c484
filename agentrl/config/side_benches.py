"""The keys of side evaluations (group `bench`): what a model knows and what it refuses. They have no training rows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from agentrl.config.checks import require
from agentrl.config.key import key
from agentrl.config.traits import BenchKeys, refuse_directory, require_place
from agentrl.core.errors import UserError, first_line
from agentrl.core.jsonl import UTF_8

HUB = "Dataset repository on the hub."


def read_system_prompt(file: str) -> str:
    """Return the text of a system prompt. Raises UserError if it is not UTF-8."""
    try:
        return Path(file).expanduser().read_text(encoding=UTF_8).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = f"cannot be read as UTF-8 text ({first_line(error)}); convert it"
        raise UserError(f"bench.system_prompt={file}: {reason}") from error


class SideKeys(BenchKeys):
    """What all side evaluations have in common."""

    tools = False

    system_prompt: str | None = key(
        "A text file with a system prompt that every item gets; null has none.", place="settings"
    )

    def check_path(self) -> None:
        require_place(
            getattr(self, "path", None), f"no such file or directory; docs/side.md says what bench={self.name} reads"
        )
        system = self.system_prompt
        found = system is None or Path(system).expanduser().is_file()
        require(found, "bench.system_prompt", system, "no such file; write the prompt into a text file, or set null")
        says = system is None or bool(read_system_prompt(system))
        require(says, "bench.system_prompt", system, "is empty; set null for none")

    def check_training_rows(self) -> None:
        require(False, "bench", self.name, "has no rows to train on; evaluate a model on it with agentrl eval")


class MmluRedux(SideKeys):
    loads = "agentrl.benches.side.mmlu_redux:MmluReduxBench"

    path: str | None = key(
        "A copy of the dataset, with a directory or a file for each subject, or one file; null downloads `hub_id`.",
        place="data",
    )
    hub_id: str = key(HUB)
    subjects: list[str] | None = key(
        "The subjects to ask about, e.g. [anatomy,virology]; null takes all.", min_length=1
    )
    errors: Literal["drop", "correct"] = key(
        "What happens to questions in which the annotators found an error.",
        means=(
            "they are not asked",
            "a wrong reference answer is replaced by the annotators', if they name one choice; others are not asked",
        ),
    )


class HarmBench(SideKeys):
    loads = "agentrl.benches.side.harmbench:HarmBench"

    path: str | None = key(
        "A checkout of centerforaisafety/HarmBench, or its file of behaviors (.csv); null downloads `hub_id`.",
        place="data",
    )
    hub_id: str = key(HUB)
    attack: Literal["direct_request", "human_jailbreaks"] = key(
        "What the model is asked.",
        means=("the behavior itself", "the behavior behind each of 5 jailbreaks that people wrote"),
    )
    classifier: Literal["harmbench", "wildguard"] = key(
        "Prompt with which `judge` classifies replies.",
        means=(
            "HarmBench's own, for cais/HarmBench-Llama-2-13b-cls",
            "WildGuard's, for allenai/wildguard, as in allenai/safety-eval",
        ),
    )

    def classified_by(self) -> str | None:
        return self.classifier


class XSTest(SideKeys):
    loads = "agentrl.benches.side.xstest:XSTestBench"

    path: str | None = key(
        "A checkout of paul-rottger/xstest, or its file of prompts; null downloads `hub_id`.", place="data"
    )
    hub_id: str = key(HUB)
    classifier: Literal["xstest", "wildguard", "strings"] = key(
        "What classifies replies.",
        means=(
            "the prompt of XSTest's authors, which they ask GPT-4",
            "WildGuard's prompt, for allenai/wildguard",
            "how the reply begins, by the authors' list; no model is asked",
        ),
    )

    def classified_by(self) -> str | None:
        return None if self.classifier == "strings" else self.classifier


class WildJailbreak(SideKeys):
    loads = "agentrl.benches.side.wildjailbreak:WildJailbreakBench"

    path: str | None = key(
        "A copy of allenai/wildjailbreak, or its eval.tsv; null downloads `hub_id`, whose terms you must accept.",
        place="data",
    )
    hub_id: str = key(HUB)

    def classified_by(self) -> str | None:
        return "wildguard"


class IFBench(SideKeys):
    loads = "agentrl.benches.side.ifbench:IFBench"

    path: str | None = key("IFBench_test.jsonl; null downloads `hub_id`.", place="data")
    hub_id: str = key(HUB)

    def check_path(self) -> None:
        super().check_path()
        refuse_directory(self.path)
