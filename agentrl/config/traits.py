"""What the rest of the program must know of a method or a bench, declared by the class of its keys.

A trait is a class attribute or a method with a default. Checks, estimates, help, trainers and reports ask the traits of
a method or a bench, not its name, so a new one states its traits and is known everywhere. Only a rule on a method's own
keys (rules/) knows the method.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from agentrl.config.checks import require
from agentrl.config.key import Group, key

Grades = Literal["all", "sys", "none"]


class MethodKeys(Group):
    """The keys of an algorithm, and its traits."""

    trainer: ClassVar[str]  # "module:name" of its trainer class, or of what makes its trainer where `rollouts` is False
    trains: ClassVar[bool] = True
    rollouts: ClassVar[bool] = True  # an update is of groups of rollouts, not of prompts, traces or pairs
    reads: ClassVar[tuple[str, ...]] = ()  # which it reads of the groups that some methods alone read, and of `traces`
    advantages: ClassVar[str] = "agentrl.objectives.advantages:group_advantages"  # rewards of a group -> advantages
    wants: ClassVar[Literal["tools", "two sides", "anything"]] = "tools"  # of a bench
    adapts: ClassVar[bool] = True  # model.lora says which modules get an adapter
    files: ClassVar[tuple[str, ...]] = ()  # its keys that name a file of the user's

    name: str = key("Algorithm.")

    def advantage_arguments(self) -> dict[str, Any]:
        """The keywords of `advantages`, which takes rewards and mask (N, K, T) and returns (N, K, T)."""
        keys: Group = self.advantage  # type: ignore[attr-defined]  # of every method that has this default
        return keys.model_dump()

    def imitates(self) -> bool:
        """Whether its loss has a term on the expert traces of the prompts."""
        return self.rollouts and "traces" in self.reads

    def measures_reference(self) -> bool:
        """Whether its loss reads a reference model."""
        return bool(getattr(self, "kl_coef", 0) > 0)

    def trace_tokens(self, prompts: int, sequences: int, row: int) -> int:
        """Tokens of expert traces through all updates, at most; `row` is the longest that a rollout can be."""
        return prompts * row if self.imitates() else 0

    def sampled_before(self, tasks: int, sequences: int) -> int:
        """Prompts whose replies are sampled once, before training."""
        return 0


class BenchKeys(Group):
    """The keys of a bench, and its traits."""

    loads: ClassVar[str]  # the class of the bench, as "module:name"; it is imported when the bench is loaded
    runs_code: ClassVar[bool] = False  # its tools are code for the sandbox; the class takes (config, strict)
    sub_answers: ClassVar[bool] = False  # its tasks have sub-answers by tool, which reward=ftrl reads
    two_sided: ClassVar[bool] = False  # a reply earns a reward from the system's side and one from the user's
    grades: ClassVar[Grades] = "all"  # what a program tells of these; a judge tells the rest
    without_path: ClassVar[str] = ""  # where the data is from if no path is given; empty where it is generated
    draw: ClassVar[int] = 1  # of a generated bench; raised when it draws other tasks, so that a run is another run

    name: str = key("Bench.")

    def check_path(self) -> None:
        """Raise UserError where `path` leads to nothing, or to the wrong kind of thing."""

    def check_training_rows(self) -> None:
        """Raise UserError where the keys leave no row to train on."""
        rule = "leaves no row to train on; lower it, e.g. to 0.2, or evaluate alone (agentrl eval)"
        require(getattr(self, "test_fraction", 0) != 1, "bench.test_fraction", 1, rule)


def require_place(path: str | None, rule: str, kind: Literal["file", "any"] = "any") -> None:
    """Refuse a `bench.path` that is not there; null is none."""
    place = Path(path or "").expanduser()
    require(path is None or (place.is_file() if kind == "file" else place.exists()), "bench.path", path, rule)


def refuse_directory(path: str | None) -> None:
    """Refuse a `bench.path` that is a directory where one file is wanted."""
    folder = path is not None and Path(path).expanduser().is_dir()
    require(not folder, "bench.path", path, "is a directory; give the jsonl file in it")
