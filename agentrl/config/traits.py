"""Traits: what the rest of the program must know about a method or a bench. The class of its keys declares them.

A trait is a class attribute or a method with a default. Checks, estimates, help, trainers and reports read the traits
of a method or a bench, never its name. So a new method needs no edit there. Only rules on a method's own keys (rules/)
know the method.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from agentrl.config.checks import require
from agentrl.config.key import Group, key
from agentrl.config.sequences import Lengths, Tree

Grades = Literal["all", "sys", "none"]


class MethodKeys(Group):
    """The keys of an algorithm, and its traits."""

    trainer: ClassVar[str]  # "module:name" of its trainer class; of a function that makes it if `rollouts` is False
    trains: ClassVar[bool] = True
    rollouts: ClassVar[bool] = True  # it trains on groups of rollouts, not on prompts, traces or pairs
    reads: ClassVar[tuple[str, ...]] = ()  # the groups of keys that it reads and others do not; also "traces"
    advantages: ClassVar[str] = "agentrl.objectives.advantages:group_advantages"  # rewards of a group -> advantages
    wants: ClassVar[Literal["tools", "two sides", "anything"]] = "tools"  # what a bench must have
    adapts: ClassVar[bool] = True  # it trains the adapters that model.lora describes
    packs: ClassVar[bool] = True  # its update can compute sequences as a prefix tree (trainer.engine=packed)

    name: str = key("Algorithm.")

    def check_keys(self) -> None:
        """Raise UserError if the keys of the algorithm do not go together."""

    def advantage_arguments(self) -> dict[str, Any]:
        """Return the keywords of `advantages`, a function of rewards and mask (N, K, T) that returns (N, K, T)."""
        keys: Group = self.advantage  # type: ignore[attr-defined]  # methods with these advantages have this group
        return keys.model_dump(exclude={"signs"})  # the trainer draws them

    def has_random_signs(self) -> bool:
        """Whether the signs of its advantages are drawn at random."""
        return getattr(getattr(self, "advantage", None), "signs", "earned") == "random"

    def imitates(self) -> bool:
        """Whether its loss has a term on the expert traces."""
        return self.rollouts and "traces" in self.reads

    def measures_reference(self) -> bool:
        """Whether its loss reads a reference model."""
        return bool(getattr(self, "kl_coef", 0) > 0)

    def longest_trace(self, completion: int) -> int:
        """Return the largest number of tokens of a trace. `completion` is that of a rollout."""
        return completion

    def update_trees(self, lengths: Lengths) -> list[Tree]:
        """Return what an update computes for a prompt: rollouts, and the trace after the prompt."""
        trace = Tree(0, 1, lengths.trace, lengths.trace, before=lengths.prompt)
        if not self.rollouts:
            return [Tree(lengths.prompt, 1, lengths.trace, lengths.trace)] if self.trains else []
        return [rollouts_after(lengths.prompt, lengths), *([trace] if self.imitates() else [])]

    def old_trees(self, lengths: Lengths) -> list[Tree]:
        """Return what is scored once in a rollout batch, by the policy that begins to train on it."""
        return [rollouts_after(lengths.prompt, lengths)] if self.rollouts else []

    def reference_trees(self, lengths: Lengths) -> list[Tree]:
        """Return what the reference model scores for a prompt."""
        return self.old_trees(lengths)

    def longest_hint(self) -> int:
        """Return the largest number of tokens that training adds to the prompt of a rollout."""
        return 0

    def sampled_before(self, tasks: int, sequences: int) -> int:
        """Return the number of prompts whose replies are sampled once, before training."""
        return 0


def rollouts_after(context: float, lengths: Lengths, share: float = 1.0) -> Tree:
    """Return the rollouts of a prompt after a context, for a share of the prompts."""
    return Tree(context, lengths.rollouts, lengths.completion, lengths.sampled, share=share)


class BenchKeys(Group):
    """The keys of a bench, and its traits."""

    loads: ClassVar[str]  # the class of the bench, as "module:name"; it is imported when the bench is loaded
    runs_code: ClassVar[bool] = False  # its tools are code for the sandbox; its class takes (config, strict)
    tools: ClassVar[bool] = True  # its tasks have tools
    sub_answers: ClassVar[bool] = False  # its tasks have a sub-answer for each tool, which reward=ftrl reads
    two_sided: ClassVar[bool] = False  # a reply earns one reward from the system's side and one from the user's
    grades: ClassVar[Grades] = "all"  # the rewards that a program gives; a judge gives the others
    without_path: ClassVar[str] = ""  # origin of the data if no path is given; empty if the data is generated
    draw: ClassVar[int] = 1  # version of a generated bench; raise it when the tasks change, to make runs differ

    name: str = key("Bench.")

    def classified_by(self) -> str | None:
        """Return the name of the fixed prompt with which `judge` classifies replies. None if no classifier is asked."""
        return None

    def check_path(self) -> None:
        """Raise UserError if `path` does not exist or is of the wrong kind. The default asks whether it exists."""
        require_place(getattr(self, "path", None), "no such file or directory; give the bench's data")

    def check_training_rows(self) -> None:
        """Raise UserError if the keys leave no row to train on."""
        rule = "leaves no row to train on; lower it, e.g. to 0.2, or only evaluate (agentrl eval)"
        require(getattr(self, "test_fraction", 0) != 1, "bench.test_fraction", 1, rule)


def require_place(path: str | None, rule: str) -> None:
    """Raise UserError if `bench.path` does not exist. Null is allowed."""
    require(path is None or Path(path).expanduser().exists(), "bench.path", path, rule)


def refuse_directory(path: str | None) -> None:
    """Raise UserError if `bench.path` is a directory where a file is needed."""
    folder = path is not None and Path(path).expanduser().is_dir()
    require(not folder, "bench.path", path, "is a directory; give the file in it")
