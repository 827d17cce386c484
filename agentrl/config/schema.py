"""The keys of the configuration: one class a group, one file each for algorithms, benches and judges, all others here.

A class states type, choices, range and sentence of each key (key.py says how). Values live in conf/; what concerns
several keys, files or the machine is in rules/.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from agentrl.config.algos import ALGOS
from agentrl.config.benches import BENCHES
from agentrl.config.judges import JUDGES, Dtype
from agentrl.config.key import Group, Holds, OneOf, key
from agentrl.objectives.choices import AnnealKind, DualUpdate

Matching = Literal["hungarian", "greedy"]

FOLDER = Holds(
    lambda name: name is None or (name not in ("", ".", "..") and not set(name) & set("/\0\n")),
    "must be a plain directory name, without '/'",
)


class Lora(Group):
    enabled: bool = key("Train low-rank adapters instead of all weights.")
    r: int = key("Rank of the adapters.", ge=1)
    alpha: int = key("Scaling numerator; the update is multiplied by alpha / r.", ge=1)
    dropout: float = key("Dropout on the adapters' input.", ge=0, lt=1)
    target_modules: Annotated[
        list[str] | str | None,
        Holds(
            lambda value: value in (None, "all-linear") or (isinstance(value, list) and value != []),
            "must be a list of module names such as [q_proj,v_proj], all-linear, or null",
        ),
    ] = key(
        "Modules that get an adapter; all-linear is every linear one but the output layer, null the family's usual "
        "ones."
    )


class Model(Group):
    name: str = key("Short name, used in the run directory.")
    path: str = key("Hub id or local directory of a checkpoint with its tokenizer; 'builtin:tiny' is the packaged one.")
    revision: str | None = key("Hub revision (branch, tag or commit); null takes the default branch.")
    family: Literal["tiny", "qwen2.5", "qwen3", "phi3", "phi4", "llama3", "other"] = key(
        "Picks LoRA targets and reasoning format."
    )
    dtype: Dtype = key("Type of the weights.")
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = key("Attention kernel.")
    gradient_checkpointing: bool = key("Recompute activations in the backward pass: less memory, more time.")
    reasoning: Literal["content", "think"] = key(
        "Where a trace's reasoning goes.", means=("plain text", "the think block")
    )
    thinking: Literal["on", "off"] | None = key(
        "Tells the chat template whether the policy thinks before it answers; off puts a trace's reasoning into "
        "content. Null leaves it to the template."
    )
    lora: Lora = key("Low-rank adaptation through PEFT.")


class Rollout(Group):
    num_generations: int = key("K, rollouts per prompt; at least 2 where advantages compare within the group.")
    temperature: float = key(
        "Sampling temperature of training rollouts.",
        gt=0,
        hint=": rollouts must be sampled, greedy copies have no advantage (the paper: 1)",
    )
    top_p: float = key("Nucleus sampling mass.", gt=0, le=1)
    max_turns: int = key("Assistant turns at most, the final answer included.", ge=1)
    max_prompt_tokens: int = key("Tasks with a longer prompt are left out, and counted.", ge=1)
    max_completion_tokens: int = key("Budget of a whole trajectory, observations included.", ge=1)
    max_turn_tokens: int | None = key("Budget of one assistant turn; null allows the whole completion budget.", ge=1)


class ToolRl(Group):
    correct_max1: bool = key("Correctness in [-1, 1] in place of [-3, 3] (its switch CORRECTMAX1).")
    with_length: bool = key("Add the length of the thought, 1 at 512 words (its switch WITHLENGTH).")
    schedule: Literal["none", "smooth", "two_stage"] = key(
        "How the ranges of the reward move.",
        means=("not at all", "until step 150 (its SCHEDULEREWARD)", "at step 30 (its MAX1STEP30MAX3)"),
    )


class Reward(Group):
    name: Literal["matching", "ot", "ftrl", "toolrl", "answer"] = key(
        "What an episode earns; docs/rewards.md defines it.",
        means=(
            "hard credit per call plus answer F1",
            "the same by optimal transport",
            "sub-answers newly solved",
            "format plus correctness",
            "answer F1 alone",
        ),
    )
    matching: Matching = key("Assignment of calls to reference calls.", means=("the paper", "MatchTIR's code"))
    answer_tag: bool = key(
        "An answer outside <answer> tags earns 0, as in MatchTIR's code; false takes the whole text."
    )
    unmatched_penalty: float = key("lambda_pen: an unmatched call earns minus this; 0 in the paper.", ge=0)
    ot_reg: float = key(
        "Entropic regularisation of reward=ot; MatchTIR's code uses 0.1.", gt=0, hint=" (MatchTIR: 0.1)"
    )
    ftrl_variant: Literal["f1", "pr", "rate", "precision"] = key(
        "What a turn of n calls, k of them solving, earns.", means=("2k/(n+1)", "k*k/n", "k", "k/n")
    )
    toolrl: ToolRl = key("Switches of reward=toolrl.")


class Anneal(Group):
    kind: AnnealKind = key("Shape of the schedule.")
    start: float = key("Tool-call scale lambda_a at the first step (eq. 11).", ge=0, le=1)
    end: float = key("Tool-call scale lambda_a at the horizon; at most `start`.", ge=0, le=1)
    horizon: float = key("S of eq. 11 as a fraction of the run; not reported.", gt=0, le=1, hint="; 1 is the whole run")
    num_steps: int = key("For kind=steps: number of equal plateaus from start to end, at least 2.")


class Dual(Group):
    kind: DualUpdate = key(
        "Update of the multipliers.",
        means=("HIPO's", "in steps of about the learning rate", "damped", "multiplicative", "none"),
    )
    initial: float = key("lambda_0 of the default constraint; what it stays at where kind=fixed.", ge=0)
    learning_rate: float = key("eta_lambda, the step size of the update.", ge=0)
    cap: float = key("lambda_max: multipliers are kept in [0, cap].", gt=0, hint=" (the paper: 20)")
    ema_decay: float = key("Decay of the moving average of a constraint's reward; 0 takes the last batch.", ge=0, lt=1)
    warmup: int = key("Rollout batches at the start in which the multipliers stay put.", ge=0)
    beta1: float = key("For kind=adam: decay of the mean violation.", ge=0, lt=1)
    beta2: float = key("For kind=adam: decay of the mean squared violation.", ge=0, lt=1)
    k_p: float = key("For kind=pid: gain on the violation itself; learning_rate is the gain on its integral.", ge=0)
    k_d: float = key("For kind=pid: gain on a fall of the average reward.", ge=0)
    patience: int = key("Batches in a row at the cap, or with a reward of 1 throughout, before it is reported.", ge=1)
    on_infeasible: Literal["warn", "stop"] = key(
        "What follows at the cap for that long.", means=("go on", "with a checkpoint")
    )


class Trainer(Group):
    learning_rate: float = key("Peak learning rate of AdamW.", gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = key("Learning-rate schedule.")
    warmup_steps: int = key("Linear warm-up updates.", ge=0)
    weight_decay: float = key("AdamW weight decay.", ge=0)
    max_grad_norm: float = key("Gradient clipping norm.", gt=0)
    epochs: float = key("Passes over the training tasks when max_steps is -1.")
    max_steps: Annotated[
        int, Holds(lambda steps: steps == -1 or steps >= 1, "must be 1 or more, or -1 to let epochs decide")
    ] = key("Optimizer updates in all.")
    tasks: Literal["all", "with_trace"] = key(
        "Training tasks.", means=("every one", "those with an expert trace, whatever the method reads")
    )
    prompts_per_batch: int = key("Prompts of one rollout batch.", ge=1)
    minibatch_prompts: int = key("Prompts of one optimizer update; divides prompts_per_batch.", ge=1)
    tokens_per_batch: int = key(
        "Tokens in a forward pass on a device (a longer sequence is one by itself); lower it if memory runs out. "
        "Changes no result except by rounding.",
        ge=1,
    )
    engine: Literal["packed", "padded"] = key(
        "How an update computes its sequences.",
        means=("each distinct token once, as a prefix tree", "one sequence per row; the reference, slower"),
    )
    micro_batch: int = key(
        "Sequences in a forward pass of algo=sft, dpo and focal_lora on a device, an update's at most; lower it if "
        "memory runs out.",
        ge=1,
    )
    save_steps: int = key(
        "Updates between checkpoints (taken at the end of a rollout batch); 0 saves only the last.",
        ge=0,
        operational=True,
    )
    keep_checkpoints: int = key("Newest checkpoints kept; older ones are deleted.", ge=1, operational=True)
    keep_best: str | None = key(
        "Metric of metrics.jsonl (its mean between checkpoints) whose best is kept besides; '-name' for the lowest.",
        operational=True,
    )
    log_rollouts: int = key("Trajectories written to rollouts.jsonl per rollout batch.", ge=0)


class Eval(Group):
    before: bool = key("Evaluate before training.")
    after: bool = key("Evaluate after training.")
    limit: int | None = key("Test tasks evaluated, drawn anew for each `seed`; null takes all.", ge=1)
    samples: int = key("Trajectories per task.", ge=1)
    temperature: float = key("Sampling temperature; 0 decodes greedily.", ge=0)
    top_p: float = key("Nucleus sampling mass; greedy decoding ignores it.", gt=0, le=1)
    batch: int = key("Episodes rolled out together.", ge=1)


class Faults(Group):
    patience: int = key("How often in a row something may go wrong before the keys below act.", ge=1)
    nonfinite: Literal["stop", "skip"] = key(
        "What NaN or infinity in a gradient or reward leads to.",
        means=("at once", "leave that update or rollout out (an update for `patience` in a row at most)"),
    )
    no_signal: Literal["warn", "stop"] = key(
        "What `patience` rollout batches in a row lead to in which every group's rewards are all equal."
    )
    dead_tools: Literal["stop", "continue"] = key(
        "What a tool environment that breaks leads to.", means=("at once", "its calls count as errors")
    )


class Hardware(Group):
    name: str = key("Preset.")
    device: Literal["cpu", "cuda"] = key("Where the model computes.")
    processes: int = key("Training processes; above 1 starts them through torchrun or accelerate.", ge=1)
    threads: int | None = key("CPU threads of each process; null takes all cores.", ge=1, hint=" for all cores")
    bf16: bool = key("Train in bfloat16 autocast.")
    vllm: Literal["off", "colocate", "server"] = key(
        "vLLM rollouts through TRL (needs a GPU and the vllm extra).",
        means=("transformers samples", "in the training process", "at vllm_url"),
    )
    vllm_url: str = key("Address of the server that hardware.vllm=server uses; vllm serve prints it.", operational=True)
    accelerate_config: str | None = key("accelerate configuration file (FSDP, DeepSpeed); null uses its defaults.")


class Tracker(Group):
    name: Literal["none", "wandb", "wandb_offline", "trackio", "tensorboard"] = key(
        "Live tracking; the run's files are the record either way."
    )
    project: str = key("Project the run is filed under (W&B, trackio).")
    entity: str | None = key("W&B team or user; null takes the account's default.")
    group: str | None = key("W&B group of runs; null takes the sweep's or none.")
    tags: list[str] = key("W&B tags of the run, beside algorithm, model and bench.")


class Config(Group):
    """The whole configuration of one run. `algo`, `bench` and `judge` take the class that their `name` selects."""

    runs_dir: str = key("Directory that holds all runs.", min_length=1, operational=True)
    name: Annotated[str, FOLDER] = key("Directory of this experiment under runs_dir.", operational=True)
    run_id: Annotated[str | None, FOLDER] = key(
        "Directory of this run; null derives it from seed and configuration.", operational=True
    )
    seed: int = key(
        "Seed of everything random in the run, data generation apart.", ge=0, le=2**32 - 1, hint=" (numpy's range)"
    )
    objective: str | None = key(
        "What a search by a sweeper optimises: a number of summary.json such as eval.after.solve_rate.mean.",
        operational=True,
    )
    sandbox: Literal["auto", "strict"] = key(
        "Tool code where the kernel grants less isolation than wanted.", means=("warns and goes on", "refuses")
    )
    dry_run: bool = key(
        "Validate, estimate tokens, steps and memory, write a run directory that reserves nothing, and stop.",
        operational=True,
    )
    algo: Annotated[Any, OneOf(ALGOS)] = key("Algorithm.")
    model: Model = key("Model.")
    bench: Annotated[Any, OneOf(BENCHES)] = key("Bench.")
    traces: str | None = key("File of expert traces (agentrl traces build, or yours); null takes the bench's own.")
    rollout: Rollout = key("How episodes are sampled.")
    reward: Reward = key("How episodes are rewarded.")
    anneal: Anneal = key("How the tool-call scale changes over training.")
    dual: Dual = key("How the multipliers of HIPO's constraints move.")
    trainer: Trainer = key("Optimisation.")
    eval: Eval = key("Evaluation before and after training.")
    faults: Faults = key("What follows when something goes wrong.", operational=True)
    hardware: Hardware = key("Where it runs.")
    judge: Annotated[Any, OneOf(JUDGES)] = key("Who grades a response where no program can.")
    tracker: Tracker = key("Live tracking.", operational=True)
    scaled_by: list[str] = key(
        "Files of conf/preset/ and conf/limits/ that scaled the values down for the model.",
        default=[],
        operational=True,
        record=True,
    )


VARIANTS: dict[str, Mapping[str, type[Group]]] = {"algo": ALGOS, "bench": BENCHES, "judge": JUDGES}
