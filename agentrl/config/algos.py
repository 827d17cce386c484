"""Types and documentation of the keys of each algorithm (group `algo`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional  # omegaconf reads Optional, not X | None

from agentrl.config.key import key


@dataclass
class Advantage:
    kind: str = key(
        "'hard_credit': turn-level plus trajectory-level (PACT App. B); 'trajectory': GRPO's group z-score."
    )
    gamma: float = key("Discount of the turn-level return, in [0, 1]; not reported by PACT, MatchTIR's code uses 0.9.")
    scale: float = key("Factor on the sum A^g + A^l: 1 as the papers write it, 0.5 as MatchTIR's code does.")
    eps: float = key("Added to the standard deviation of a group before dividing by it.")
    lone_raw: bool = key(
        "For hard_credit: a turn that one rollout alone reached keeps its return, as in MatchTIR's code."
    )


@dataclass
class Trace:
    drop: list[str] = key("Parts of h* to remove (Table 3): any of reasoning, tool_call, tool_response.")
    rendering: str = key("How [x; h*] is built: 'message' appends text to the user's message, 'turns' adds chat turns.")
    max_tokens: int = key("Longest rendered trace in tokens; later turns of a longer one are dropped whole.")


@dataclass
class Schedule:
    reasoning: str = key("Reasoning in L_SFT: segment (levels L4..L0), token, full_token, fixed or none (Table 4).")
    call: str = key("Tool calls in L_SFT: scale (weight anneals), token (span is cut), fixed or none (Table 4).")
    switch_points: list[float] = key("Fractions of the horizon at which the level drops L4>L3>L2>L1>L0; ascending.")


@dataclass
class Pact:
    name: str = key("Algorithm.")
    rl_coef: float = key("Weight of the clipped surrogate; 0 leaves the SFT term alone.")
    condition_on_trace: bool = key("True: gated-off prompts use L^h (ratios under [x; h*]); False: L^x (Table 2).")
    sft_coef: float = key("beta_SFT of eq. 12, the weight of the component-aware SFT term; 0 removes it.")
    sft_norm: str = key(
        "Z of eq. 10: 'weights' (their sum, as printed) or 'tokens' (their count: lambda_a then fades L_SFT)."
    )
    q: float = key("Probability of prompt-only anchoring per prompt and step (eq. 13), in [0, 1].")
    clip_eps: float = key("PPO clip range eps of eq. 5; not reported by PACT, MatchTIR uses 0.2.")
    kl_coef: float = key("Coefficient of the KL term to the reference model; 0 loads no reference.")
    kl_ratio_correction: bool = key("Multiply the KL estimate by the policy's ratio: TRL's default, in no paper here.")
    kl_context: str = key("Context of the KL term: 'ratio' (that of the row's ratio) or 'prompt' (always x).")
    entropy_coef: float = key("Coefficient of the entropy bonus; not reported by PACT, MatchTIR uses 0.001.")
    loss_aggregation: str = key("'sequence': mean over tokens, then sequences (MatchTIR); 'token': mean over tokens.")
    advantage: Advantage = key("How rewards become token advantages.")
    trace: Trace = key("How expert traces are rendered.")
    schedule: Schedule = key("What L_SFT trains on as training proceeds.")


@dataclass
class Grpo:
    name: str = key("Algorithm.")
    clip_eps: float = key("PPO clip range.")
    kl_coef: float = key("Coefficient of the KL term to the reference model; 0 loads no reference.")
    kl_ratio_correction: bool = key("Multiply the KL estimate by the policy's ratio: TRL's default, in no paper here.")
    entropy_coef: float = key("Coefficient of the entropy bonus.")
    loss_aggregation: str = key("'sequence': mean over tokens, then sequences; 'token': mean over tokens.")
    advantage: Advantage = key("How rewards become token advantages.")


@dataclass
class Mu:
    peak: float = key("mu once warmed up, in [0, 1].")
    valley: float = key("mu once decayed; at most `peak`.")
    warmup_steps: int = key("Updates over which mu rises from 0 to `peak` in a line.")
    decay_steps: int = key("Updates after that over which it falls to `valley` by half a cosine.")


@dataclass
class Chord(Grpo):
    """GRPO's keys, and those of the SFT term beside it."""

    mu: Mu = key("Weight of the SFT term; GRPO's loss has 1 - mu.")
    token_weight: str = key("Weight of an expert token in the SFT term: 'uniform', or 'phi', p (1 - p) (CHORD-phi).")


@dataclass
class Luffy:
    name: str = key("Algorithm.")
    shaping: float = key("gamma of p / (p + gamma), above 0, in place of an expert token's ratio p.")
    kl_coef: float = key("Coefficient of the KL term to the reference model; 0 loads no reference.")
    kl_ratio_correction: bool = key("Multiply the KL estimate by the policy's ratio: TRL's default, in no paper here.")
    entropy_coef: float = key("Coefficient of the entropy bonus.")


@dataclass
class CustomAlgo(Grpo):
    """An algorithm of the user's own on top of GRPO, in a file outside this package."""

    path: str = key("A Python file of yours with a class Trainer(AgentGRPOTrainer) (docs/extending.md).")
    options: dict[str, Any] = key("Keys of your own for that file; nothing else checks them.")


@dataclass
class Sft:
    name: str = key("Algorithm.")
    components: list[str] = key("Components of the expert trace that are targets: reasoning, tool_call, answer.")


@dataclass
class Constraint:
    name: str = key("Name in logs and checkpoints.")
    reward: str = key("Reward that is bounded from below: sys or user.")
    kind: Optional[str] = key("Prompts whose replies count: conflict or aligned; null counts all.")
    threshold: float = key("tau, in [0, 1]: the mean reward to be reached.")
    initial: float = key("lambda before the first update, in [0, dual.cap].")


@dataclass
class Hipo:
    name: str = key("Algorithm.")
    user_weight: float = key("w of A = w A_user + sum_k lambda_k A_k: 1, or 0 to learn from the constraints alone.")
    tau: float = key("Threshold of the default constraint, E[r_sys] >= tau, in [0, 1].")
    constraints: list[Constraint] = key("Constraints, each with a multiplier of its own; quote the list to set it.")
    clip_eps: float = key("PPO clip range; not reported by HIPO.")
    importance_level: str = key(
        "Clipped ratio: 'sequence' (pi / pi_old of the whole reply, as HIPO writes it), 'sequence_mean' (its geometric "
        "mean over tokens, GSPO's) or 'token'."
    )
    kl_coef: float = key("Coefficient of the KL term to the reference model; 0 loads no reference.")
    kl_ratio_correction: bool = key("Multiply the KL estimate by the policy's ratio: TRL's default, in no paper here.")
    reference: str = key("Reference model: 'copy', or '4bit' (NF4, CUDA only); adapters need none and ignore this.")
    entropy_coef: float = key("Coefficient of the entropy bonus; HIPO has none.")
    loss_aggregation: str = key("'sequence': mean over tokens, then sequences; 'token': mean over tokens.")
    advantage_eps: float = key("Added to the standard deviation of a group before dividing by it.")
    min_tokens: int = key("Shorter replies are left out of rewards and loss, and counted; not reported by HIPO.")
    max_repetition: float = key("So are replies with a larger share of repeated runs of 3 tokens, in [0, 1]; likewise.")


@dataclass
class Dpo:
    name: str = key("Algorithm.")
    beta: float = key("Strength of DPO's pull to the reference model.")
    pairs: Optional[str] = key(
        "File of {system, user, chosen, rejected}; null samples K replies a task and ranks them by reward."
    )
    sys_weight: float = key("w of r_user + w r_sys, by which sampled replies are ranked.")


@dataclass
class SplitSoftmax:
    name: str = key("Algorithm.")
    k: float = key("Attention mass p on the system's messages becomes p^k while a reply is sampled, in (0, 1].")


@dataclass
class FocalLora:
    name: str = key("Algorithm.")
    head_share: float = key("Share of all heads that get an adapter: those that conflicts disturb most, in (0, 1].")
    probe_prompts: int = key("Training prompts of each kind on which heads are compared.")
    onset_tokens: int = key("First tokens of a reply whose attention to the system's messages is raised.")


@dataclass
class Endpoint:
    base_url: Optional[str] = key("OpenAI-compatible endpoint that plays the episodes; null loads model.path here.")
    api_key_env: str = key("Environment variable that holds the endpoint's key; a server on this machine needs none.")
    concurrency: int = key("Episodes played at once.")
    timeout: float = key("Seconds that the server may take for one turn.")
    retries: int = key("Further tries where the server is busy or away (429, 5xx, no connection), waiting ever longer.")
    history: str = key(
        "How earlier calls go back: 'structured' (tool_calls) or 'text' (as Qwen's template writes them)."
    )


@dataclass
class Evaluate:
    name: str = key("Algorithm.")
    endpoint: Endpoint = key("Where the model is, if not in this process.")


ROLLOUT_FREE = (
    Sft,
    Dpo,
    SplitSoftmax,
    FocalLora,
    Evaluate,
)  # an update is of prompts or pairs, not of groups of rollouts

TRACED = (Pact, Chord, Luffy)  # an update also reads the expert traces of its prompts

ALGOS: dict[str, type] = {
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
