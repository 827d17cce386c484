"""Types and documentation of every configuration key. Values live in conf/; cross-checks in validate.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional  # omegaconf reads Optional, not X | None


def key(doc: str) -> Any:
    """A required key with its one-sentence documentation."""
    return field(metadata={"doc": doc})


@dataclass
class Advantage:
    kind: str = key(
        "'hard_credit': turn-level plus trajectory-level (PACT App. B); 'trajectory': GRPO's group z-score."
    )
    gamma: float = key("Discount of the turn-level return, in [0, 1]; not reported by PACT, MatchTIR's code uses 0.9.")
    scale: float = key("Factor on the sum A^g + A^l: 1 as the papers write it, 0.5 as MatchTIR's code does.")
    eps: float = key("Added to the standard deviation of a group before dividing by it.")


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
    q: float = key("Probability of prompt-only anchoring per prompt and step (eq. 13), in [0, 1].")
    clip_eps: float = key("PPO clip range eps of eq. 5; not reported by PACT, MatchTIR uses 0.2.")
    kl_coef: float = key("Coefficient of the KL term to the reference model; 0 loads no reference.")
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
    entropy_coef: float = key("Coefficient of the entropy bonus.")
    loss_aggregation: str = key("'sequence': mean over tokens, then sequences; 'token': mean over tokens.")
    advantage: Advantage = key("How rewards become token advantages.")


@dataclass
class Sft:
    name: str = key("Algorithm.")
    components: list[str] = key("Components of the expert trace that are targets: reasoning, tool_call, answer.")


@dataclass
class Lora:
    enabled: bool = key("Train low-rank adapters instead of all weights.")
    r: int = key("Rank of the adapters.")
    alpha: int = key("Scaling numerator; the update is multiplied by alpha / r.")
    dropout: float = key("Dropout on the adapters' input, in [0, 1).")
    target_modules: Optional[list[str]] = key("Module names that get an adapter; null takes the family's usual ones.")


@dataclass
class Model:
    name: str = key("Short name, used in the run directory.")
    path: str = key("Hub id or local directory of a checkpoint with its tokenizer; 'builtin:tiny' is the packaged one.")
    revision: Optional[str] = key("Hub revision (branch, tag or commit); null takes the default branch.")
    family: str = key("tiny, qwen2.5, qwen3, phi3, phi4, llama3 or other: picks LoRA targets and reasoning format.")
    dtype: str = key("Weights: float32, bfloat16 or float16.")
    attn_implementation: str = key("Attention kernel: sdpa, eager or flash_attention_2.")
    gradient_checkpointing: bool = key("Recompute activations in the backward pass: less memory, more time.")
    reasoning: str = key("Where a trace's reasoning goes: 'content' (plain text) or 'think' (the think block).")
    lora: Lora = key("Low-rank adaptation through PEFT.")


@dataclass
class Minihop:
    name: str = key("Bench.")
    path: Optional[str] = key("Unused: minihop is generated; must be null.")
    data_seed: int = key("Seed of the generator; apart from `seed` so that seeds share one dataset.")
    train_tasks: int = key("Tasks in the training split.")
    test_tasks: int = key("Tasks in the held-out split.")
    train_hops: list[float] = key("Share of 1, 2, 3 and 4-hop tasks in the training split; sums to 1.")
    test_hops: list[float] = key("Share of 1, 2, 3 and 4-hop tasks in the test split; sums to 1.")


@dataclass
class ToolHop:
    name: str = key("Bench.")
    path: Optional[str] = key("ToolHop.json (list or dict form); null downloads `hub_id`.")
    hub_id: str = key("Dataset repository on the hub.")
    scenario: str = key("Prompt: direct (no tools), mandatory (tools at every step) or free.")
    rule: str = key("Answer correctness: 'toolhop' (official), 'ftrl' (FTRL, MatchTIR, PACT) or 'strict' (exact tag).")
    test_fraction: float = key("Share of rows held out for evaluation, in (0, 1); ToolHop ships no training split.")
    data_seed: int = key("Seed of the train/test division.")


@dataclass
class Ftrl:
    name: str = key("Bench.")
    path: str = key("A directory with FTRL's train and test files (.jsonl, or MatchTIR's .parquet), or one such file.")
    answer_tag: str = key("Prompts that ask for <answer> tags: 'train' (as in MatchTIR and PACT), 'always' or 'never'.")
    train_on_test: bool = key("Allow test rows in training; a file of test rows alone is divided then.")
    test_fraction: float = key("Share of rows held out where a file holds one split alone, in (0, 1).")
    data_seed: int = key("Seed of that division.")


@dataclass
class Rollout:
    engine: str = key("Generation engine; 'trl' is TRL's own multi-turn tool loop.")
    num_generations: int = key("K, rollouts per prompt; at least 2, since advantages compare within the group.")
    temperature: float = key("Sampling temperature of training rollouts, above 0.")
    top_p: float = key("Nucleus sampling mass, in (0, 1].")
    max_turns: int = key("Assistant turns at most, the final answer included.")
    max_prompt_tokens: int = key("Tasks with a longer prompt are left out, and counted.")
    max_completion_tokens: int = key("Budget of a whole trajectory, observations included.")
    max_turn_tokens: Optional[int] = key("Budget of one assistant turn; null allows the whole completion budget.")


@dataclass
class Reward:
    name: str = key("'matching': hard credit per call plus answer F1; 'answer': answer F1 alone.")
    matching: str = key(
        "Assignment of calls to reference calls: 'hungarian' (the paper) or 'greedy' (MatchTIR's code)."
    )
    unmatched_penalty: float = key("lambda_pen >= 0: an unmatched call earns minus this; 0 in the paper.")


@dataclass
class Anneal:
    kind: str = key("Shape of the schedule: linear, constant, cosine or steps.")
    start: float = key("Tool-call scale lambda_a at the first step (eq. 11).")
    end: float = key("Tool-call scale lambda_a at the horizon; at most `start`.")
    horizon: float = key("S of eq. 11 as a fraction of the run, in (0, 1]; not reported, 1 is the whole run.")
    num_steps: int = key("For kind=steps: number of equal plateaus from start to end, at least 2.")


@dataclass
class Trainer:
    learning_rate: float = key("Peak learning rate of AdamW.")
    lr_schedule: str = key("Learning-rate schedule: constant, linear or cosine.")
    warmup_steps: int = key("Linear warm-up updates.")
    weight_decay: float = key("AdamW weight decay.")
    max_grad_norm: float = key("Gradient clipping norm.")
    epochs: float = key("Passes over the training tasks when max_steps is -1.")
    max_steps: int = key("Optimizer updates in all; -1 lets `epochs` decide.")
    prompts_per_batch: int = key("Prompts of one rollout batch.")
    minibatch_prompts: int = key("Prompts of one optimizer update; divides prompts_per_batch.")
    micro_batch: int = key("Sequences in one forward pass on one device; lower it when memory runs out.")
    save_steps: int = key("Updates between checkpoints (taken at the end of a rollout batch); 0 saves only the last.")
    keep_checkpoints: int = key("Checkpoints kept; older ones are deleted.")
    log_rollouts: int = key("Trajectories written to rollouts.jsonl per rollout batch.")


@dataclass
class Eval:
    before: bool = key("Evaluate before training.")
    after: bool = key("Evaluate after training.")
    limit: Optional[int] = key("Test tasks evaluated; null takes all.")
    samples: int = key("Trajectories per task.")
    temperature: float = key("0 decodes greedily; above 0 samples.")
    batch: int = key("Episodes rolled out together.")


@dataclass
class Hardware:
    name: str = key("Preset.")
    device: str = key("cpu or cuda.")
    processes: int = key("Training processes; above 1 starts them through torchrun or accelerate.")
    threads: Optional[int] = key("CPU threads of each process; null takes all cores.")
    bf16: bool = key("Train in bfloat16 autocast.")
    vllm: str = key("vLLM rollouts through TRL: off, colocate or server (needs a GPU and the vllm extra).")
    accelerate_config: Optional[str] = key("accelerate configuration file (FSDP, DeepSpeed); null uses its defaults.")


@dataclass
class Tracker:
    name: str = key("none, wandb, wandb_offline or trackio; files in the run directory are the record either way.")
    project: str = key("Project the run is filed under.")
    entity: Optional[str] = key("W&B team or user; null takes the account's default.")
    group: Optional[str] = key("Group of runs; null takes the sweep's or none.")
    tags: list[str] = key("Tags of the run.")


@dataclass
class Config:
    """The whole configuration of one run. `algo` and `bench` take the type that their `name` selects."""

    runs_dir: str = key("Directory that holds all runs.")
    name: str = key("Directory of this experiment under runs_dir.")
    run_id: Optional[str] = key("Directory of this run; null derives it from seed and configuration.")
    seed: int = key("Seed of everything random in the run, data generation apart.")
    dry_run: bool = key("Validate, estimate tokens, steps and memory, write the run directory, and stop.")
    algo: Any = key("Algorithm.")
    model: Model = key("Model.")
    bench: Any = key("Bench.")
    rollout: Rollout = key("How episodes are sampled.")
    reward: Reward = key("How episodes are rewarded.")
    anneal: Anneal = key("How the tool-call scale changes over training.")
    trainer: Trainer = key("Optimisation.")
    eval: Eval = key("Evaluation before and after training.")
    hardware: Hardware = key("Where it runs.")
    tracker: Tracker = key("Live tracking.")


ALGOS: dict[str, type] = {"pact": Pact, "grpo": Grpo, "sft": Sft}
BENCHES: dict[str, type] = {"minihop": Minihop, "toolhop": ToolHop, "ftrl": Ftrl}
