"""Types and documentation of the configuration: one file for algorithms, benches and judges each, all other
keys here.

Values live in conf/; checks across keys in validate.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional  # omegaconf reads Optional, not X | None

from agentrl.config.key import key


@dataclass
class Lora:
    enabled: bool = key("Train low-rank adapters instead of all weights.")
    r: int = key("Rank of the adapters.")
    alpha: int = key("Scaling numerator; the update is multiplied by alpha / r.")
    dropout: float = key("Dropout on the adapters' input, in [0, 1).")
    target_modules: Any = key(
        "Modules that get an adapter: a list of names, all-linear (every linear one but the output layer), or null for "
        "the family's usual ones."
    )


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
    thinking: Optional[str] = key(
        "'on' or 'off' tells the chat template whether the policy thinks before it answers; off puts a trace's "
        "reasoning into content. Null leaves it to the template."
    )
    lora: Lora = key("Low-rank adaptation through PEFT.")


@dataclass
class Rollout:
    engine: str = key("Generation engine; 'trl' samples with TRL, turn by turn.")
    num_generations: int = key("K, rollouts per prompt; at least 2, since advantages compare within the group.")
    temperature: float = key("Sampling temperature of training rollouts, above 0.")
    top_p: float = key("Nucleus sampling mass, in (0, 1].")
    max_turns: int = key("Assistant turns at most, the final answer included.")
    max_prompt_tokens: int = key("Tasks with a longer prompt are left out, and counted.")
    max_completion_tokens: int = key("Budget of a whole trajectory, observations included.")
    max_turn_tokens: Optional[int] = key("Budget of one assistant turn; null allows the whole completion budget.")


@dataclass
class ToolRl:
    correct_max1: bool = key("Correctness in [-1, 1] in place of [-3, 3] (its switch CORRECTMAX1).")
    with_length: bool = key("Add the length of the thought, 1 at 512 words (its switch WITHLENGTH).")
    schedule: str = key(
        "'none', 'smooth' (its SCHEDULEREWARD: ranges move until step 150) or 'two_stage' (MAX1STEP30MAX3: at step 30)."
    )


@dataclass
class Reward:
    name: str = key(
        "'matching' (hard credit per call plus answer F1), 'ot' (the same by optimal transport), 'ftrl' (sub-answers "
        "newly solved), 'toolrl' (format plus correctness) or 'answer' (answer F1 alone); docs/rewards.md defines them."
    )
    matching: str = key(
        "Assignment of calls to reference calls: 'hungarian' (the paper) or 'greedy' (MatchTIR's code)."
    )
    answer_tag: bool = key(
        "An answer outside <answer> tags earns 0, as in MatchTIR's code; false takes the whole text."
    )
    unmatched_penalty: float = key("lambda_pen >= 0: an unmatched call earns minus this; 0 in the paper.")
    ot_reg: float = key("Entropic regularisation of reward=ot, above 0; MatchTIR's code uses 0.1.")
    ftrl_variant: str = key(
        "A turn of n calls, k of them solving, earns: f1 2k/(n+1), pr k*k/n, rate k, or precision k/n."
    )
    toolrl: ToolRl = key("Switches of reward=toolrl.")


@dataclass
class Anneal:
    kind: str = key("Shape of the schedule: linear, constant, cosine or steps.")
    start: float = key("Tool-call scale lambda_a at the first step (eq. 11).")
    end: float = key("Tool-call scale lambda_a at the horizon; at most `start`.")
    horizon: float = key("S of eq. 11 as a fraction of the run, in (0, 1]; not reported, 1 is the whole run.")
    num_steps: int = key("For kind=steps: number of equal plateaus from start to end, at least 2.")


@dataclass
class Dual:
    kind: str = key("Update of the multipliers: sgd (HIPO's), adam, pid, log (multiplicative) or fixed (none).")
    initial: float = key("lambda_0 of the default constraint; what it stays at where kind=fixed.")
    learning_rate: float = key("eta_lambda, the step size of the update.")
    cap: float = key("lambda_max: multipliers are kept in [0, cap].")
    ema_decay: float = key("Decay of the moving average of a constraint's reward, in [0, 1); 0 takes the last batch.")
    warmup: int = key("Rollout batches at the start in which the multipliers stay put.")
    beta1: float = key("For kind=adam: decay of the mean violation.")
    beta2: float = key("For kind=adam: decay of the mean squared violation.")
    k_p: float = key("For kind=pid: gain on the violation itself; learning_rate is the gain on its integral.")
    k_d: float = key("For kind=pid: gain on a fall of the average reward.")
    patience: int = key("Batches in a row at the cap, or with a reward of 1 throughout, before it is reported.")
    on_infeasible: str = key("At the cap for that long: 'warn' and go on, or 'stop' with a checkpoint.")


@dataclass
class Trainer:
    learning_rate: float = key("Peak learning rate of AdamW.")
    lr_schedule: str = key("Learning-rate schedule: constant, linear or cosine.")
    warmup_steps: int = key("Linear warm-up updates.")
    weight_decay: float = key("AdamW weight decay.")
    max_grad_norm: float = key("Gradient clipping norm.")
    epochs: float = key("Passes over the training tasks when max_steps is -1.")
    max_steps: int = key("Optimizer updates in all; -1 lets `epochs` decide.")
    tasks: str = key("Training tasks: 'all', or 'with_trace' (those with an expert trace, whatever the method reads).")
    prompts_per_batch: int = key("Prompts of one rollout batch.")
    minibatch_prompts: int = key("Prompts of one optimizer update; divides prompts_per_batch.")
    micro_batch: int = key("Sequences in a forward pass on a device, an update's at most; lower it if memory runs out.")
    save_steps: int = key("Updates between checkpoints (taken at the end of a rollout batch); 0 saves only the last.")
    keep_checkpoints: int = key("Newest checkpoints kept; older ones are deleted.")
    keep_best: Optional[str] = key(
        "Metric of metrics.jsonl (its mean between checkpoints) whose best is kept besides; '-name' for the lowest."
    )
    log_rollouts: int = key("Trajectories written to rollouts.jsonl per rollout batch.")


@dataclass
class Eval:
    before: bool = key("Evaluate before training.")
    after: bool = key("Evaluate after training.")
    limit: Optional[int] = key("Test tasks evaluated, drawn anew for each `seed`; null takes all.")
    samples: int = key("Trajectories per task.")
    temperature: float = key("0 decodes greedily; above 0 samples.")
    top_p: float = key("Nucleus sampling mass, in (0, 1]; greedy decoding ignores it.")
    batch: int = key("Episodes rolled out together.")


@dataclass
class Faults:
    patience: int = key("How often in a row something may go wrong before the keys below act, at least 1.")
    nonfinite: str = key(
        "NaN or infinity in a gradient or reward: 'stop', or 'skip' to leave that update or rollout out (an update for "
        "`patience` in a row at most)."
    )
    no_signal: str = key(
        "`patience` rollout batches in a row in which every group's rewards are all equal: 'warn' or 'stop'."
    )
    dead_tools: str = key("A tool environment that breaks: 'stop', or 'continue' to count its calls as errors.")


@dataclass
class Hardware:
    name: str = key("Preset.")
    device: str = key("cpu or cuda.")
    processes: int = key("Training processes; above 1 starts them through torchrun or accelerate.")
    threads: Optional[int] = key("CPU threads of each process; null takes all cores.")
    bf16: bool = key("Train in bfloat16 autocast.")
    vllm: str = key("vLLM rollouts through TRL: off, colocate or server (needs a GPU and the vllm extra).")
    vllm_url: str = key("Address of the server that hardware.vllm=server uses; vllm serve prints it.")
    accelerate_config: Optional[str] = key("accelerate configuration file (FSDP, DeepSpeed); null uses its defaults.")


@dataclass
class Tracker:
    name: str = key("none, wandb, wandb_offline, trackio or tensorboard; the run's files are the record either way.")
    project: str = key("Project the run is filed under (W&B, trackio).")
    entity: Optional[str] = key("W&B team or user; null takes the account's default.")
    group: Optional[str] = key("W&B group of runs; null takes the sweep's or none.")
    tags: list[str] = key("W&B tags of the run, beside algorithm, model and bench.")


@dataclass
class Config:
    """The whole configuration of one run. `algo`, `bench` and `judge` take the type that their `name` selects."""

    runs_dir: str = key("Directory that holds all runs.")
    name: str = key("Directory of this experiment under runs_dir.")
    run_id: Optional[str] = key("Directory of this run; null derives it from seed and configuration.")
    seed: int = key("Seed of everything random in the run, data generation apart.")
    objective: Optional[str] = key(
        "What a search by a sweeper optimises: a number of summary.json such as eval.after.solve_rate.mean."
    )
    sandbox: str = key(
        "Tool code where the kernel grants less isolation than wanted: 'auto' warns and goes on, 'strict' refuses."
    )
    dry_run: bool = key(
        "Validate, estimate tokens, steps and memory, write a run directory that reserves nothing, and stop."
    )
    algo: Any = key("Algorithm.")
    model: Model = key("Model.")
    bench: Any = key("Bench.")
    traces: Optional[str] = key("File of expert traces (agentrl traces build, or yours); null takes the bench's own.")
    rollout: Rollout = key("How episodes are sampled.")
    reward: Reward = key("How episodes are rewarded.")
    anneal: Anneal = key("How the tool-call scale changes over training.")
    dual: Dual = key("How the multipliers of HIPO's constraints move.")
    trainer: Trainer = key("Optimisation.")
    eval: Eval = key("Evaluation before and after training.")
    faults: Faults = key("What follows when something goes wrong.")
    hardware: Hardware = key("Where it runs.")
    judge: Any = key("Who grades a response where no program can.")
    tracker: Tracker = key("Live tracking.")
