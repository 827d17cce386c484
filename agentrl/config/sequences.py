"""What a method reads for each prompt: trees of token sequences, from which tokens and operations are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of an episode."""

    prompt: float
    completion: float  # what the policy sampled, and the observations
    sampled: float  # the former alone
    trace: float  # expert trace h*
    rollouts: int = 1  # K, the episodes of a prompt


@dataclass(frozen=True)
class Tree:
    """`branches` sequences of `length` tokens, each after the same context."""

    context: float
    branches: int
    length: float
    scored: float  # of `length`, the tokens whose log-probs are computed
    before: float = 0.0  # tokens before the context, which another tree of the prompt holds, too
    share: float = 1.0  # of all prompts, those that have this tree
    repeats: float = 1.0  # how often the context is computed, because the branches are in different passes

    @property
    def packed(self) -> float:
        """Tokens of a forward pass that computes each distinct token once; for a mean prompt."""
        return self.share * (self.repeats * self.context + self.branches * self.length)

    @property
    def padded(self) -> float:
        """Tokens of rows of which each repeats what is before it."""
        return self.share * self.branches * (self.before + self.context + self.length)

    @property
    def scored_tokens(self) -> float:
        """Tokens that go through the output layer."""
        return self.share * self.branches * self.scored

    def pairs(self, packed: bool = True) -> float:
        """Pairs of tokens of which the later one attends to the earlier one."""
        start = self.before + self.context
        branch = self.length * start + self.length**2 / 2
        if packed:
            context = self.repeats * (self.context * self.before + self.context**2 / 2)
            return self.share * (context + self.branches * branch)
        return self.share * self.branches * (start**2 / 2 + branch)


def count_tokens(trees: Sequence[Tree], packed: bool) -> float:
    """Count the tokens that a forward pass over some trees computes."""
    return sum(tree.packed if packed else tree.padded for tree in trees)
