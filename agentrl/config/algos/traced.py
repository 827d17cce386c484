"""The keys of the other methods that learn from expert traces."""

from __future__ import annotations

from typing import Literal

from agentrl.config.algos.grpo import (
    AVERAGING,
    ENTROPY,
    GROUP_EPS,
    KL,
    KL_CORRECTION,
    SEQUENCES_OR_TOKENS,
    Grpo,
)
from agentrl.config.checks import require
from agentrl.config.key import Group, key
from agentrl.config.sequences import Lengths, Tree
from agentrl.config.traits import MethodKeys, rollouts_after
from agentrl.objectives.choices import Aggregation, TokenWeight


class Sft(MethodKeys):
    trainer = "agentrl.trainers.sft:sft_trainer"
    rollouts = False
    reads = ("traces",)
    wants = "anything"

    components: list[Literal["reasoning", "tool_call", "answer"]] = key(
        "Components of the expert trace to train on.", min_length=1, hint="; name at least one component"
    )


class Mu(Group):
    peak: float = key("mu after the warm-up.", ge=0, le=1)
    valley: float = key("mu after the decay; at most `peak`.", ge=0, le=1)
    warmup_steps: int = key("Updates in which mu rises linearly from 0 to `peak`.", ge=0)
    decay_steps: int = key("Updates after the warm-up in which mu falls to `valley` by half a cosine.", ge=0)


class Chord(Grpo):
    """The keys of GRPO, and those of CHORD's SFT term."""

    trainer = "agentrl.trainers.chord:ChordTrainer"
    reads = ("reward", "traces")

    mu: Mu = key("Weight of the SFT term; GRPO's loss has the weight 1 - mu.")
    token_weight: TokenWeight = key(
        "Weight in the SFT term of an expert token with probability p.", means=("1", "p (1 - p), CHORD-phi")
    )

    def check_keys(self) -> None:
        falls = f"must be at most algo.mu.peak={self.mu.peak:g}: after the warm-up mu can only fall; swap the two"
        require(self.mu.valley <= self.mu.peak, "algo.mu.valley", self.mu.valley, falls)


class Luffy(MethodKeys):
    trainer = "agentrl.trainers.luffy:LuffyTrainer"
    reads = ("reward", "traces")

    shaping: float = key(
        "gamma of p / (p + gamma), which replaces the ratio p of an expert token.", gt=0, hint=" (the paper: 0.1)"
    )
    kl_coef: float = key(KL, ge=0)
    kl_ratio_correction: bool = key(KL_CORRECTION)
    entropy_coef: float = key(ENTROPY, ge=0)


class SelfDistillation(Grpo):
    """The keys of GRPO, for methods that score rollouts under [x; h*], too."""

    reads = ("reward", "traces")

    def imitates(self) -> bool:
        return False

    def old_trees(self, lengths: Lengths) -> list[Tree]:
        """The teacher scores the rollouts after [x; h*]."""
        return [*super().old_trees(lengths), rollouts_after(lengths.prompt + lengths.trace, lengths)]

    def reference_trees(self, lengths: Lengths) -> list[Tree]:
        return super().old_trees(lengths)


class Opsd(SelfDistillation):
    trainer = "agentrl.trainers.self_distillation:OpsdTrainer"

    rl_coef: float = key("Weight of GRPO's loss; 0 distils alone.", ge=0)
    coef: float = key("Weight of the distillation term.", ge=0)


class Sdar(Opsd):
    trainer = "agentrl.trainers.self_distillation:SdarTrainer"

    sharpness: float = key("Factor on d = log p(y|x,h) - log p(y|x) in the gate sigmoid(sharpness d).", gt=0)


class Rlsd(SelfDistillation):
    trainer = "agentrl.trainers.self_distillation:RlsdTrainer"

    share: float = key("l at the first update: the share of an advantage that the teacher spreads.", ge=0, le=1)
    share_steps: int = key("Updates in which l falls to 0.", ge=0)
    share_clip: float = key("A token's part of an advantage is at most so much above or below 1.", gt=0, le=1)

    def old_trees(self, lengths: Lengths) -> list[Tree]:
        """The student scores them once more."""
        return [*super().old_trees(lengths), rollouts_after(lengths.prompt, lengths)]


class HintGrpo(Grpo):
    """The keys of GRPO, and those of the hints."""

    trainer = "agentrl.trainers.hint_grpo:HintGrpoTrainer"
    reads = ("reward", "traces")

    hint_start: float = key(
        "Share of a trace's turns in the hint at the first update; a part of a turn counts as a whole one.", ge=0, le=1
    )
    hint_end: float = key("Share that `hint_start` falls to in a line over the run.", ge=0, le=1)
    hint_tokens: int = key("Longest hint in tokens; a longer hint loses its last turns.", ge=1)

    def check_keys(self) -> None:
        shrinks = f"must be at most algo.hint_start={self.hint_start:g}: hints can only shrink; swap the two"
        require(self.hint_end <= self.hint_start, "algo.hint_end", self.hint_end, shrinks)

    def imitates(self) -> bool:
        return False

    def update_trees(self, lengths: Lengths) -> list[Tree]:
        """The rollouts after x and a hint, if every group is sampled again."""
        hint = min(self.hint_start * lengths.trace, self.hint_tokens)
        return [rollouts_after(lengths.prompt + hint, lengths)]

    def old_trees(self, lengths: Lengths) -> list[Tree]:
        return self.update_trees(lengths)

    def longest_hint(self) -> int:
        return self.hint_tokens if self.hint_start > 0 else 0


class Srft(MethodKeys):
    trainer = "agentrl.trainers.srft:SrftTrainer"
    reads = ("reward", "traces")

    sft_coef: float = key("c of w_SFT = c exp(slope H), the weight of an expert token in the SFT term.", ge=0)
    sft_slope: float = key("Slope of w_SFT: -1 in the paper, 1 in its authors' code, 0 weighs all tokens alike.")
    positive_coef: float = key(
        "c of w_RL = c exp(slope H), the weight of a rollout's token with a positive advantage.", ge=0
    )
    positive_slope: float = key("Slope of w_RL; 0 weighs all tokens alike.")
    shaping: float | None = key(
        "gamma of p / (p + gamma) in place of the ratio p of an expert token; null keeps p (the authors' script: 0.1).",
        gt=0,
    )
    clip_eps: float = key("PPO clip range of the rollouts.", gt=0, lt=1)
    kl_coef: float = key(KL, ge=0)
    kl_ratio_correction: bool = key(KL_CORRECTION)
    entropy_coef: float = key(ENTROPY, ge=0)
    loss_aggregation: Aggregation = key(AVERAGING, means=SEQUENCES_OR_TOKENS)
    advantage_eps: float = key(GROUP_EPS, gt=0)


ALGOS: dict[str, type[MethodKeys]] = {
    "sft": Sft,
    "chord": Chord,
    "luffy": Luffy,
    "opsd": Opsd,
    "sdar": Sdar,
    "rlsd": Rlsd,
    "hint_grpo": HintGrpo,
    "srft": Srft,
}
