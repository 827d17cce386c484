"""The keys of each algorithm (group `algo`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from agentrl.config.checks import is_web_address
from agentrl.config.key import Group, Holds, key
from agentrl.config.traits import MethodKeys
from agentrl.core.expert_trace import TracePart
from agentrl.objectives.choices import Aggregation, CallSchedule, RatioLevel, ReasoningSchedule, SftNorm, TokenWeight

KL = "Coefficient of the KL term to the reference model; 0 loads no reference."
KL_CORRECTION = "Multiply the KL estimate by the policy's ratio: TRL's default, in no paper here."
GROUP_EPS = "Added to the standard deviation of a group before dividing by it."


class Advantage(Group):
    kind: Literal["hard_credit", "trajectory"] = key(
        "How rewards are compared.",
        means=("turn-level plus trajectory-level (PACT App. B)", "GRPO's group z-score"),
    )
    gamma: float = key("Discount of the turn-level return; not reported by PACT, MatchTIR's code uses 0.9.", ge=0, le=1)
    scale: float = key("Factor on the sum A^g + A^l: 1 as the papers write it, 0.5 as MatchTIR's code does.", gt=0)
    eps: float = key(GROUP_EPS, gt=0)
    lone_raw: bool = key(
        "For hard_credit: a turn that one rollout alone reached keeps its return, as in MatchTIR's code."
    )


class Trace(Group):
    drop: list[TracePart] = key("Parts of h* to remove (Table 3).")
    rendering: Literal["message", "turns"] = key(
        "How [x; h*] is built.", means=("as text behind the user's message", "as chat turns")
    )
    max_tokens: int = key("Longest rendered trace in tokens; later turns of a longer one are dropped whole.", ge=1)


class Schedule(Group):
    reasoning: ReasoningSchedule = key(
        "Reasoning in L_SFT (Table 4).",
        means=(
            "levels L4..L0",
            "the first part of each turn's",
            "the first part of the trace, calls too",
            "all",
            "none",
        ),
    )
    call: CallSchedule = key(
        "Tool calls in L_SFT (Table 4).",
        means=("their weight anneals", "their span is cut", "all at the first weight", "none"),
    )
    switch_points: Annotated[
        list[float],
        Holds(
            lambda points: len(points) == 4 and all(0 <= p <= 1 for p in points) and points == sorted(points),
            "must be four ascending fractions in [0, 1], one per drop L4>L3>L2>L1>L0",
        ),
    ] = key("Fractions of the horizon at which the level drops.")


class Pact(MethodKeys):
    trainer = "agentrl.trainers.pact:PactTrainer"
    reads = ("reward", "traces", "anneal")

    rl_coef: float = key("Weight of the clipped surrogate; 0 leaves the SFT term alone.", ge=0)
    condition_on_trace: bool = key("True: gated-off prompts use L^h (ratios under [x; h*]); False: L^x (Table 2).")
    sft_coef: float = key("beta_SFT of eq. 12, the weight of the component-aware SFT term; 0 removes it.", ge=0)
    sft_norm: SftNorm = key("Z of eq. 10.", means=("their sum, as printed", "their count: lambda_a then fades L_SFT"))
    q: float = key(
        "Probability of prompt-only anchoring per prompt and step (eq. 13).", ge=0, le=1, hint=" (the paper: 0.4)"
    )
    clip_eps: float = key("PPO clip range eps of eq. 5; not reported by PACT, MatchTIR uses 0.2.", gt=0, lt=1)
    kl_coef: float = key(KL, ge=0)
    kl_ratio_correction: bool = key(KL_CORRECTION)
    kl_context: Literal["ratio", "prompt"] = key(
        "Context of the KL term.", means=("that of the row's ratio", "always x")
    )
    entropy_coef: float = key("Coefficient of the entropy bonus; not reported by PACT, MatchTIR uses 0.001.", ge=0)
    loss_aggregation: Aggregation = key(
        "How the losses of tokens are averaged.", means=("over tokens, then sequences (MatchTIR)", "over tokens")
    )
    advantage: Advantage = key("How rewards become token advantages.")
    trace: Trace = key("How expert traces are rendered.")
    schedule: Schedule = key("What L_SFT trains on as training proceeds.")

    def imitates(self) -> bool:
        return self.sft_coef > 0

    def trace_tokens(self, prompts: int, sequences: int, row: int) -> int:
        """Those of the contexts [x; h*]."""
        return int(sequences * (1 - self.q) * self.trace.max_tokens) if self.condition_on_trace else 0


class Grpo(MethodKeys):
    trainer = "agentrl.trainers.grpo:AgentGRPOTrainer"
    reads: ClassVar[tuple[str, ...]] = ("reward",)

    clip_eps: float = key("PPO clip range.", gt=0, lt=1)
    kl_coef: float = key(KL, ge=0)
    kl_ratio_correction: bool = key(KL_CORRECTION)
    entropy_coef: float = key("Coefficient of the entropy bonus.", ge=0)
    loss_aggregation: Aggregation = key(
        "How the losses of tokens are averaged.", means=("over tokens, then sequences", "over tokens")
    )
    advantage: Advantage = key("How rewards become token advantages.")


class Mu(Group):
    peak: float = key("mu once warmed up.", ge=0, le=1)
    valley: float = key("mu once decayed; at most `peak`.", ge=0, le=1)
    warmup_steps: int = key("Updates over which mu rises from 0 to `peak` in a line.", ge=0)
    decay_steps: int = key("Updates after that over which it falls to `valley` by half a cosine.", ge=0)


class Chord(Grpo):
    """GRPO's keys, and those of the SFT term beside it."""

    trainer = "agentrl.trainers.chord:ChordTrainer"
    reads = ("reward", "traces")

    mu: Mu = key("Weight of the SFT term; GRPO's loss has 1 - mu.")
    token_weight: TokenWeight = key(
        "Weight of an expert token of probability p in the SFT term.", means=("1", "p (1 - p), CHORD-phi")
    )


class Luffy(MethodKeys):
    trainer = "agentrl.trainers.luffy:LuffyTrainer"
    reads = ("reward", "traces")

    shaping: float = key(
        "gamma of p / (p + gamma), in place of an expert token's ratio p.", gt=0, hint=" (the paper: 0.1)"
    )
    kl_coef: float = key(KL, ge=0)
    kl_ratio_correction: bool = key(KL_CORRECTION)
    entropy_coef: float = key("Coefficient of the entropy bonus.", ge=0)


class CustomAlgo(Grpo):
    """An algorithm of the user's own on top of GRPO, in a file outside this package."""

    files = ("path",)

    path: str = key("A Python file of yours with a class Trainer(AgentGRPOTrainer) (docs/extending.md).")
    options: dict[str, Any] = key("Keys of your own for that file; nothing else checks them.")


class Sft(MethodKeys):
    trainer = "agentrl.trainers.sft:sft_trainer"
    rollouts = False
    reads = ("traces",)
    wants = "anything"

    components: list[Literal["reasoning", "tool_call", "answer"]] = key(
        "Components of the expert trace that are targets.", min_length=1, hint="; name at least one component"
    )


class Constraint(Group):
    name: str = key("Name in logs and checkpoints.")
    reward: Literal["sys", "user"] = key("Reward that is bounded from below.")
    kind: Literal["conflict", "aligned"] | None = key("Prompts whose replies count; null counts all.")
    threshold: float = key("tau: the mean reward to be reached.", ge=0, le=1, hint=", as rewards do")
    initial: float = key("lambda before the first update, at most dual.cap.", ge=0)


class Hipo(MethodKeys):
    trainer = "agentrl.trainers.hipo:HipoTrainer"
    reads = ("dual",)
    wants = "two sides"

    user_weight: float = key(
        "w of A = w A_user + sum_k lambda_k A_k: 1, or 0 to learn from the constraints alone.", ge=0
    )
    tau: float = key(
        "Threshold of the default constraint, E[r_sys] >= tau.",
        ge=0,
        le=1,
        hint=", as rewards do (the paper: 0.7)",
    )
    constraints: list[Constraint] = key("Constraints, each with a multiplier of its own; quote the list to set it.")
    clip_eps: float = key("PPO clip range; not reported by HIPO.", gt=0, lt=1)
    importance_level: RatioLevel = key(
        "What the clipped ratio is of.",
        means=(
            "pi / pi_old of the whole reply, as HIPO writes it",
            "its geometric mean over tokens, GSPO's",
            "each token",
        ),
    )
    kl_coef: float = key(KL, ge=0)
    kl_ratio_correction: bool = key(KL_CORRECTION)
    reference: Literal["copy", "4bit"] = key(
        "Reference model; adapters need none and ignore this.", means=("the model at the start", "NF4, CUDA only")
    )
    entropy_coef: float = key("Coefficient of the entropy bonus; HIPO has none.", ge=0)
    loss_aggregation: Aggregation = key(
        "How the losses of tokens are averaged.", means=("over tokens, then sequences", "over tokens")
    )
    advantage_eps: float = key(GROUP_EPS, gt=0)
    min_tokens: int = key("Shorter replies are left out of rewards and loss, and counted; not reported by HIPO.", ge=0)
    max_repetition: float = key(
        "So are replies with a larger share of repeated runs of 3 tokens; likewise.", ge=0, le=1, hint="; 1 keeps all"
    )


class Dpo(MethodKeys):
    trainer = "agentrl.trainers.preferences:dpo_trainer"
    rollouts = False
    wants = "two sides"
    files = ("pairs",)

    beta: float = key("Strength of DPO's pull to the reference model.", gt=0)
    pairs: str | None = key(
        "File of {system, user, chosen, rejected}; null samples K replies a task and ranks them by reward."
    )
    sys_weight: float = key("w of r_user + w r_sys, by which sampled replies are ranked.", ge=0)

    def measures_reference(self) -> bool:
        return True

    def sampled_before(self, tasks: int, sequences: int) -> int:
        return min(tasks, sequences) if self.pairs is None else 0


class SplitSoftmax(MethodKeys):
    trains = rollouts = adapts = False
    wants = "two sides"

    k: float = key(
        "Attention mass p on the system's messages becomes p^k while a reply is sampled.",
        gt=0,
        le=1,
        hint="; 1 changes nothing, smaller looks harder",
    )


class FocalLora(MethodKeys):
    trainer = "agentrl.trainers.focal_lora:focal_trainer"
    rollouts = adapts = False
    wants = "two sides"

    head_share: float = key("Share of all heads that get an adapter: those that conflicts disturb most.", gt=0, le=1)
    probe_prompts: int = key("Training prompts of each kind on which heads are compared.", ge=1)
    onset_tokens: int = key("First tokens of a reply whose attention to the system's messages is raised.", ge=1)


class Endpoint(Group):
    base_url: Annotated[
        str | None,
        Holds(
            lambda url: url is None or is_web_address(url),
            "must begin with http:// or https:// and name a host, e.g. http://localhost:8000/v1",
        ),
    ] = key("OpenAI-compatible endpoint that plays the episodes; null loads model.path here.")
    api_key_env: str = key(
        "Environment variable that holds the endpoint's key; a server on this machine needs none.", operational=True
    )
    concurrency: int = key("Episodes played at once.", ge=1, operational=True)
    timeout: float = key("Seconds that the server may take for one turn.", gt=0, operational=True)
    retries: int = key(
        "Further tries where the server is busy or away (429, 5xx, no connection), waiting ever longer.",
        ge=0,
        operational=True,
    )
    history: Literal["structured", "text"] = key(
        "How earlier calls go back.", means=("tool_calls", "as Qwen's template writes them")
    )


class Evaluate(MethodKeys):
    trains = rollouts = False
    wants = "anything"

    endpoint: Endpoint = key("Where the model is, if not in this process.")


ALGOS: dict[str, type[MethodKeys]] = {
    "pact": Pact,
    "grpo": Grpo,
    "chord": Chord,
    "luffy": Luffy,
    "sft": Sft,
    **dict.fromkeys(("hipo", "sys_only", "user_only", "fixed_lambda"), Hipo),
    "dpo": Dpo,
    "split_softmax": SplitSoftmax,
    "focal_lora": FocalLora,
    "eval": Evaluate,
    "custom": CustomAlgo,
}
