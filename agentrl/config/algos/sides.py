"""The keys of the methods that learn from two rewards, the system's and the user's."""

from __future__ import annotations

from typing import ClassVar, Literal

from agentrl.config.algos.grpo import AVERAGING, ENTROPY, GROUP_EPS, KL, KL_CORRECTION, SEQUENCES_OR_TOKENS
from agentrl.config.constraints import Constraint
from agentrl.config.key import key
from agentrl.config.sequences import Lengths, Tree
from agentrl.config.traits import MethodKeys
from agentrl.objectives.choices import Aggregation, RatioLevel


class Hipo(MethodKeys):
    trainer = "agentrl.trainers.hipo:HipoTrainer"
    reads = ("dual",)
    advantages = "agentrl.objectives.hipo:lagrangian_advantage"  # a function with its arguments
    wants = "two sides"
    multipliers_move: ClassVar[bool] = True

    user_weight: float = key("w in A = w A_user + sum_k lambda_k A_k; 0 learns from the constraints alone.", ge=0)
    tau: float = key(
        "Threshold of the default constraint, E[r_sys] >= tau.",
        ge=0,
        le=1,
        hint=", as rewards do (the paper: 0.7)",
    )
    constraints: list[Constraint] = key("Constraints, each with its own multiplier; quote the list to set it.")
    clip_eps: float = key("PPO clip range. HIPO does not report it.", gt=0, lt=1)
    importance_level: RatioLevel = key(
        "What the clipped importance ratio belongs to.",
        means=(
            "the whole reply: pi / pi_old, as HIPO writes it",
            "the whole reply: the geometric mean over its tokens, as in GSPO",
            "each token",
        ),
    )
    kl_coef: float = key(KL, ge=0)
    kl_ratio_correction: bool = key(KL_CORRECTION)
    reference: Literal["copy", "4bit"] = key(
        "How the reference model is kept; adapters need no copy and ignore this key.",
        means=("a copy of the model at the start", "the copy quantised to NF4, on CUDA only"),
    )
    entropy_coef: float = key(f"{ENTROPY} HIPO has no such term.", ge=0)
    loss_aggregation: Aggregation = key(AVERAGING, means=SEQUENCES_OR_TOKENS)
    advantage_eps: float = key(GROUP_EPS, gt=0)
    min_tokens: int = key(
        "Leave replies with fewer tokens out of rewards and loss, and count them. HIPO does not report it.", ge=0
    )
    max_repetition: float = key(
        "Leave out replies with a larger share of repeated runs of 3 tokens, too. HIPO does not report it.",
        ge=0,
        le=1,
        hint="; 1 keeps all",
    )


class FixedLambda(Hipo):
    multipliers_move = False


class SysOnly(FixedLambda):
    """HIPO with w = 0."""


class UserOnly(FixedLambda):
    """HIPO with lambda = 0."""


class Gdpo(Hipo):
    advantages = "agentrl.objectives.gdpo:batch_normalised_advantage"


class Scalarised(Hipo):
    advantages = "agentrl.objectives.scalarised:scalarised_advantage"


class Repo(Hipo):
    trainer = "agentrl.trainers.repo:RepoTrainer"


class Dpo(MethodKeys):
    trainer = "agentrl.trainers.preferences:dpo_trainer"
    rollouts = False
    wants = "two sides"

    beta: float = key("How strongly DPO keeps the policy near the reference model.", gt=0)
    pairs: str | None = key(
        "A jsonl file of {system, user, chosen, rejected}; null samples K replies per task and ranks them by reward.",
        place="data",
    )
    sys_weight: float = key("w in r_user + w r_sys, which ranks the sampled replies.", ge=0)

    def measures_reference(self) -> bool:
        return True

    def update_trees(self, lengths: Lengths) -> list[Tree]:
        """The chosen and the rejected reply."""
        return [Tree(lengths.prompt, 2, lengths.completion, lengths.completion)]

    def reference_trees(self, lengths: Lengths) -> list[Tree]:
        return self.update_trees(lengths)

    def sampled_before(self, tasks: int, sequences: int) -> int:
        return min(tasks, sequences) if self.pairs is None else 0


class SplitSoftmax(MethodKeys):
    trains = rollouts = adapts = False
    wants = "two sides"

    k: float = key(
        "Attention mass p on the system prompt becomes p^k while a reply is sampled.",
        gt=0,
        le=1,
        hint="; 1 changes nothing, a smaller k raises attention more",
    )


class FocalLora(MethodKeys):
    trainer = "agentrl.trainers.focal_lora:focal_trainer"
    rollouts = adapts = packs = False
    wants = "two sides"

    head_share: float = key("Share of heads that get an adapter: the heads that conflicts disturb most.", gt=0, le=1)
    probe_prompts: int = key("Training prompts of each kind (conflict, aligned) on which heads are compared.", ge=1)
    onset_tokens: int = key("Number of first tokens of a reply whose attention to the system prompt is raised.", ge=1)


ALGOS: dict[str, type[MethodKeys]] = {
    "hipo": Hipo,
    "sys_only": SysOnly,
    "user_only": UserOnly,
    "fixed_lambda": FixedLambda,
    "gdpo": Gdpo,
    "repo": Repo,
    "scalarised": Scalarised,
    "dpo": Dpo,
    "split_softmax": SplitSoftmax,
    "focal_lora": FocalLora,
}
