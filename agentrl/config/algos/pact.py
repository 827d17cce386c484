"""The keys of PACT."""

from __future__ import annotations

from typing import Annotated, Literal

from agentrl.config.algos.grpo import AVERAGING, ENTROPY, KL, KL_CORRECTION, SEQUENCES_OR_TOKENS, Advantage
from agentrl.config.checks import require
from agentrl.config.constraints import EpisodeConstraint
from agentrl.config.key import Group, Holds, key
from agentrl.config.sequences import Lengths, Tree
from agentrl.config.traits import MethodKeys, rollouts_after
from agentrl.core.expert_trace import TracePart
from agentrl.objectives.choices import (
    Aggregation,
    CallSchedule,
    FadeDriver,
    ReasoningSchedule,
    Selection,
    SftNorm,
)

DRIVERS = (
    "the updates made, for all prompts alike (eq. 11)",
    "the share of the prompt's rollouts that solve it",
    "exp(-L), where L is the mean loss of the policy on the prompt's trace",
)


class Trace(Group):
    drop: list[TracePart] = key("Parts of the expert trace h* to remove (Table 3).")
    rendering: Literal["message", "turns"] = key(
        "How the context [x; h*] of prompt and trace is built.",
        means=("h* is text after the user's message", "h* is earlier turns of the chat"),
    )
    max_tokens: int = key("Longest rendered trace in tokens; a longer trace loses its last turns.", ge=1)


class Schedule(Group):
    reasoning: ReasoningSchedule = key(
        "Which reasoning L_SFT trains on as training proceeds (Table 4).",
        means=(
            "fewer and fewer chunks of each turn, by levels L4 to L0",
            "a shrinking first part of each turn's reasoning",
            "a shrinking first part of the trace, including its calls",
            "all reasoning",
            "no reasoning",
        ),
    )
    call: CallSchedule = key(
        "How L_SFT trains on tool calls as training proceeds (Table 4).",
        means=(
            "their weight falls from anneal.start to anneal.end",
            "a shrinking first part of each turn's calls",
            "all calls with the weight anneal.start",
            "no calls",
        ),
    )
    level_from: FadeDriver = key(
        "What shortens the reasoning, by levels or by a shrinking first part.", means=DRIVERS, older="updates"
    )
    call_from: FadeDriver = key(
        "What moves the weight of tool calls from anneal.start to anneal.end.", means=DRIVERS, older="updates"
    )
    switch_points: Annotated[
        list[float],
        Holds(
            lambda points: len(points) == 4 and all(0 <= p <= 1 for p in points) and points == sorted(points),
            "must be four ascending fractions in [0, 1], one per drop L4>L3>L2>L1>L0",
        ),
    ] = key("Progress at which the level of reasoning drops; of the horizon, if the updates drive it.")


class Conditioned(Group):
    advantages: Selection = key(
        "Tokens that L^h trains on.",
        means=("all", "those with a positive advantage alone (docs/pact.md)"),
        older="all",
    )
    floor: float | None = key(
        "L^h leaves out tokens with a negative advantage and a smaller probability under [x; h*]; null keeps all.",
        gt=0,
        lt=1,
        older=None,
    )
    weight: Literal["one", "ratio"] = key(
        "Weight of a token in L^h.",
        means=("1", "min(1, p(y|x,h) / p(y|x)), by the policy that sampled it"),
        older="one",
    )


class Pact(MethodKeys):
    trainer = "agentrl.trainers.pact:PactTrainer"
    reads = ("reward", "traces", "anneal", "dual")

    rl_coef: float = key("Weight of the policy-gradient loss; 0 trains with the SFT term alone.", ge=0)
    condition_on_trace: bool = key(
        "Train prompts that are not anchored with L^h, whose ratios are under [x; h*]; false uses L^x (Table 2)."
    )
    sft_coef: float = key("beta_SFT of eq. 12: weight of the SFT term on the expert trace; 0 removes it.", ge=0)
    sft_norm: SftNorm = key(
        "Denominator Z of eq. 10.",
        means=("the sum of the token weights, as printed", "the number of tokens, so L_SFT fades with lambda_a"),
    )
    q: float = key(
        "Probability that a prompt is anchored in a step: it trains with the loss L^x under the prompt alone (eq. 13).",
        ge=0,
        le=1,
        hint=" (the paper: 0.4)",
    )
    q_from: Literal["key", "success", "loss"] = key(
        "Where the probability of anchoring comes from.",
        means=(
            "algo.q for all prompts",
            "q + (1 - q) s, where s is the share of the prompt's rollouts that solve it",
            "the same, where s is exp(-L) and L the mean loss of the policy on the prompt's trace",
        ),
        older="key",
    )
    clip_eps: float = key("PPO clip range eps of eq. 5. PACT does not report it; MatchTIR uses 0.2.", gt=0, lt=1)
    kl_coef: float = key(KL, ge=0)
    kl_ratio_correction: bool = key(KL_CORRECTION)
    kl_context: Literal["ratio", "prompt"] = key(
        "Context of the KL term.", means=("the same as that of the ratio", "always the prompt x")
    )
    entropy_coef: float = key(f"{ENTROPY} PACT does not report it; MatchTIR uses 0.001.", ge=0)
    loss_aggregation: Aggregation = key(AVERAGING, means=SEQUENCES_OR_TOKENS)
    dual_clip: float | None = key(
        "c of dual clipping: where the advantage A is negative, the surrogate is at least c A; null has no such bound.",
        gt=1,
        older=None,
    )
    conditioned: Conditioned = key("Variants of L^h.")
    constraints: list[EpisodeConstraint] = key(
        "Constraints on the mean of an episode, each with a multiplier; quote the list to set it (docs/pact.md).",
        older=[],
    )
    advantage: Advantage = key("How rewards become token advantages.")
    trace: Trace = key("How expert traces are rendered.")
    schedule: Schedule = key("Which parts of the trace L_SFT trains on as training proceeds.")

    def check_keys(self) -> None:
        idle = self.rl_coef == 0 and (self.sft_coef == 0 or self.q == 1)
        idle_rule = "leaves no loss to train with; raise it, or raise algo.sft_coef and keep algo.q below 1"
        require(not idle, "algo.rl_coef", self.rl_coef, idle_rule)

    def imitates(self) -> bool:
        return self.sft_coef > 0

    def longest_trace(self, completion: int) -> int:
        return self.trace.max_tokens

    def update_trees(self, lengths: Lengths) -> list[Tree]:
        """Rollouts after x, or for prompts that are not anchored after [x; h*]; and h* after x for the latter."""
        free, given = 1 - self.q, lengths.prompt + lengths.trace
        trees = []
        if self.rl_coef > 0:
            trees.append(rollouts_after(lengths.prompt, lengths, 1 - free * self.condition_on_trace))
            if self.condition_on_trace:
                trees.append(rollouts_after(given, lengths, free))
        if self.imitates():
            known = lengths.prompt if trees else 0.0  # else the prompt is computed for the trace alone
            start = lengths.prompt - known
            trees.append(Tree(start, 1, lengths.trace, lengths.trace, before=known, share=free))
        if self.kl_coef > 0 and self.kl_context == "prompt" and self.condition_on_trace:
            trees.append(Tree(0, lengths.rollouts, lengths.completion, lengths.sampled, lengths.prompt, free))
        return trees

    def old_trees(self, lengths: Lengths) -> list[Tree]:
        """All rollouts after x, and again after [x; h*] where that is the context of the ratio."""
        given = rollouts_after(lengths.prompt + lengths.trace, lengths, 1 - self.q)
        return [*super().old_trees(lengths), *([given] if self.condition_on_trace else [])]

    def reference_trees(self, lengths: Lengths) -> list[Tree]:
        return self.old_trees(lengths) if self.kl_context == "ratio" else super().old_trees(lengths)


ALGOS: dict[str, type[MethodKeys]] = {"pact": Pact}
