"""The keys of each algorithm (group `algo`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from agentrl.config.checks import is_web_address
from agentrl.config.constraints import Constraint, EpisodeConstraint
from agentrl.config.key import Group, Holds, key
from agentrl.config.sequences import Lengths, Tree
from agentrl.config.traits import MethodKeys, rollouts_after
from agentrl.core.expert_trace import TracePart
from agentrl.objectives.choices import (
    Aggregation,
    CallSchedule,
    FadeDriver,
    RatioLevel,
    ReasoningSchedule,
    Selection,
    SftNorm,
    TokenWeight,
)

KL = "Coefficient of the KL term, which keeps the policy near the reference model; 0 loads no reference model."
KL_CORRECTION = "Multiply the KL estimate by the importance ratio. TRL does so by default, but no paper here does."
GROUP_EPS = "Added to the standard deviation of a group before advantages are divided by it."
ENTROPY = "Coefficient of the entropy bonus."
AVERAGING = "How the losses of tokens are averaged."
DRIVERS = (
    "the updates made, for all prompts alike (eq. 11)",
    "the share of the prompt's rollouts that solve it",
    "exp(-L), where L is the mean loss of the policy on the prompt's trace",
)
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
    level_from: FadeDriver = key("What shortens the reasoning, by levels or by a shrinking first part.", means=DRIVERS)
    call_from: FadeDriver = key("What moves the weight of tool calls from anneal.start to anneal.end.", means=DRIVERS)
    switch_points: Annotated[
        list[float],
        Holds(
            lambda points: len(points) == 4 and all(0 <= p <= 1 for p in points) and points == sorted(points),
            "must be four ascending fractions in [0, 1], one per drop L4>L3>L2>L1>L0",
        ),
    ] = key("Progress at which the level of reasoning drops; of the horizon, if the updates drive it.")


class Conditioned(Group):
    advantages: Selection = key(
        "Tokens that L^h trains on.", means=("all", "those with a positive advantage alone (docs/pact.md)")
    )
    floor: float | None = key(
        "L^h leaves out tokens with a negative advantage and a smaller probability under [x; h*]; null keeps all.",
        gt=0,
        lt=1,
    )
    weight: Literal["one", "ratio"] = key(
        "Weight of a token in L^h.", means=("1", "min(1, p(y|x,h) / p(y|x)), by the policy that sampled it")
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
    )
    conditioned: Conditioned = key("Variants of L^h.")
    constraints: list[EpisodeConstraint] = key(
        "Constraints on the mean of an episode, each with a multiplier; quote the list to set it (docs/pact.md)."
    )
    advantage: Advantage = key("How rewards become token advantages.")
    trace: Trace = key("How expert traces are rendered.")
    schedule: Schedule = key("Which parts of the trace L_SFT trains on as training proceeds.")

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


class Grpo(MethodKeys):
    trainer = "agentrl.trainers.grpo:AgentGRPOTrainer"
    reads: ClassVar[tuple[str, ...]] = ("reward",)

    clip_eps: float = key("PPO clip range.", gt=0, lt=1)
    kl_coef: float = key(KL, ge=0)
    kl_ratio_correction: bool = key(KL_CORRECTION)
    entropy_coef: float = key(ENTROPY, ge=0)
    loss_aggregation: Aggregation = key(AVERAGING, means=SEQUENCES_OR_TOKENS)
    advantage: Advantage = key("How rewards become token advantages.")


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


class CustomAlgo(Grpo):
    """The user's own algorithm on top of GRPO, in a file outside this package."""

    path: str = key("Your Python file with a class Trainer(AgentGRPOTrainer) (docs/extending.md).", place="data")
    options: dict[str, Any] = key("Your own keys for that file; agentrl does not check them.")


class Sft(MethodKeys):
    trainer = "agentrl.trainers.sft:sft_trainer"
    rollouts = False
    reads = ("traces",)
    wants = "anything"

    components: list[Literal["reasoning", "tool_call", "answer"]] = key(
        "Components of the expert trace to train on.", min_length=1, hint="; name at least one component"
    )


class Hipo(MethodKeys):
    trainer = "agentrl.trainers.hipo:HipoTrainer"
    reads = ("dual",)
    wants = "two sides"

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


class Endpoint(Group):
    base_url: Annotated[
        str | None,
        Holds(
            lambda url: url is None or is_web_address(url),
            "must begin with http:// or https:// and name a host, e.g. http://localhost:8000/v1",
        ),
    ] = key("Address of an OpenAI-compatible server that plays the episodes; null loads model.path in this process.")
    api_key_env: str = key(
        "Environment variable that holds the endpoint's key; a server on this machine needs no key.", operational=True
    )
    concurrency: int = key("Number of episodes played at the same time.", ge=1, operational=True)
    timeout: float = key("Seconds that the server may take for one turn.", gt=0, operational=True)
    retries: int = key(
        "Further tries while the server is busy or away (429, 5xx, no connection), with growing pauses.",
        ge=0,
        operational=True,
    )
    history: Literal["structured", "text"] = key(
        "How the calls of earlier turns are sent to the server.",
        means=("as tool_calls", "as text, as Qwen's template writes them"),
    )


class Evaluate(MethodKeys):
    trains = rollouts = False
    wants = "anything"

    endpoint: Endpoint = key("The server of the model, if it is not loaded in this process.")


ALGOS: dict[str, type[MethodKeys]] = {
    "pact": Pact,
    "grpo": Grpo,
    "chord": Chord,
    "luffy": Luffy,
    "opsd": Opsd,
    "sdar": Sdar,
    "rlsd": Rlsd,
    "hint_grpo": HintGrpo,
    "srft": Srft,
    "sft": Sft,
    **dict.fromkeys(("hipo", "sys_only", "user_only", "fixed_lambda"), Hipo),
    "dpo": Dpo,
    "split_softmax": SplitSoftmax,
    "focal_lora": FocalLora,
    "eval": Evaluate,
    "custom": CustomAlgo,
}
