"""The keys of GRPO, of an algorithm of the user's own on top of it, and sentences that other algorithms share."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from agentrl.config.key import Group, key
from agentrl.config.traits import MethodKeys
from agentrl.objectives.choices import Aggregation

KL = "Coefficient of the KL term, which keeps the policy near the reference model; 0 loads no reference model."
KL_CORRECTION = "Multiply the KL estimate by the importance ratio. TRL does so by default, but no paper here does."
GROUP_EPS = "Added to the standard deviation of a group before advantages are divided by it."
ENTROPY = "Coefficient of the entropy bonus."
AVERAGING = "How the losses of tokens are averaged."
SEQUENCES_OR_TOKENS = ("over the tokens of a sequence, then over sequences", "over all tokens")


class Advantage(Group):
    kind: Literal["hard_credit", "trajectory"] = key(
        "How rewards are compared.",
        means=("each turn and the whole trajectory (PACT, App. B)", "the whole trajectory (GRPO)"),
    )
    gamma: float = key("Discount of a turn's return. PACT does not report it; MatchTIR's code uses 0.9.", ge=0, le=1)
    scale: float = key("Factor on the sum A^g + A^l of hard credit: 1 in the papers, 0.5 in MatchTIR's code.", gt=0)
    eps: float = key(GROUP_EPS, gt=0)
    lone_raw: bool = key(
        "For hard_credit: a turn that only one rollout reached keeps its return, as in MatchTIR's code."
    )
    signs: Literal["earned", "random"] = key(
        "Signs of the advantages.",
        means=("as the rewards say", "a coin for each rollout: a control that any useful term must beat"),
        older="earned",
    )


class Grpo(MethodKeys):
    trainer = "agentrl.trainers.grpo:AgentGRPOTrainer"
    reads: ClassVar[tuple[str, ...]] = ("reward",)

    clip_eps: float = key("PPO clip range.", gt=0, lt=1)
    kl_coef: float = key(KL, ge=0)
    kl_ratio_correction: bool = key(KL_CORRECTION)
    entropy_coef: float = key(ENTROPY, ge=0)
    loss_aggregation: Aggregation = key(AVERAGING, means=SEQUENCES_OR_TOKENS)
    advantage: Advantage = key("How rewards become token advantages.")


class CustomAlgo(Grpo):
    """The user's own algorithm on top of GRPO, in a file outside this package."""

    path: str = key("Your Python file with a class Trainer(AgentGRPOTrainer) (docs/extending.md).", place="data")
    options: dict[str, Any] = key("Your own keys for that file; agentrl does not check them.")


ALGOS: dict[str, type[MethodKeys]] = {"grpo": Grpo}
