"""The keys of the configuration, one class for each group. Algorithms, benches and judges have their own files.

A class states the type, choices, range and sentence of each key (see key.py). Values are in conf/. Rules on several
keys, on files or on the machine are in rules/.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from agentrl.config.algos.table import ALGOS
from agentrl.config.benches import BENCHES
from agentrl.config.hardware import Hardware
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
    alpha: int = key("Scale of the adapters: their output is multiplied by alpha / r.", ge=1)
    dropout: float = key("Dropout on the adapters' input.", ge=0, lt=1)
    target_modules: Annotated[
        list[str] | str | None,
        Holds(
            lambda value: value in (None, "all-linear") or (isinstance(value, list) and value != []),
            "must be a list of module names such as [q_proj,v_proj], all-linear, or null",
        ),
    ] = key(
        "Modules that get an adapter. all-linear takes every linear module except the output layer; null takes the "
        "usual modules of the model's family."
    )


class Model(Group):
    name: str = key("Short name, used in the run directory.")
    path: str = key(
        "Hub id, local directory or GGUF file of a checkpoint with its tokenizer; 'builtin:tiny' is packaged.",
        place="weights",
    )
    revision: str | None = key("Hub revision (branch, tag or commit); null takes the default branch.")
    family: Literal[
        "tiny", "qwen2.5", "qwen3", "qwen3.5", "phi3", "phi4", "llama3", "smollm2", "gemma3", "lfm2", "other"
    ] = key(
        "Family of the model, which decides the modules that LoRA adapts; other takes that of the checkpoint, if known."
    )
    dtype: Dtype = key("Type of the weights.")
    quantize: Literal["int8", "8bit", "4bit"] | None = key(
        "Keep the matrices of a base that gets adapters in fewer bits. null keeps them in `dtype`.",
        means=("torchao, also on a CPU", "bitsandbytes, on CUDA", "NF4 of bitsandbytes, on CUDA"),
        older=None,
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = key("Attention kernel.")
    gradient_checkpointing: bool = key("Recompute activations in the backward pass: less memory, more time.")
    reasoning: Literal["content", "think"] = key(
        "Where the reasoning of an expert trace is written.", means=("in the reply's text", "in the think block")
    )
    thinking: Literal["on", "off"] | None = key(
        "Tells the chat template whether the policy thinks before it answers. off writes the reasoning of a trace as "
        "text; null leaves the choice to the template."
    )
    chat_template: str | None = key(
        "Chat template in place of the model's own: a Jinja file, the name of a template that TRL ships (qwen2_5, "
        "llama3_2, ...), or chatml_tools (ChatML with tools). It is saved with the trained model. null takes the "
        "model's own.",
        place="template",
        older=None,
    )
    lora: Lora = key("Low-rank adaptation through PEFT.")


class Rollout(Group):
    num_generations: int = key("K, the rollouts of each prompt (a group); at least 2 if advantages compare a group.")
    temperature: float = key(
        "Sampling temperature of training rollouts.",
        gt=0,
        hint=": greedy rollouts of a prompt are equal, so they have no advantage (the paper: 1)",
    )
    top_p: float = key("Probability mass of nucleus sampling.", gt=0, le=1)
    max_turns: int = key("Largest number of assistant turns, including the final answer.", ge=1)
    max_prompt_tokens: int = key("Longest prompt in tokens; tasks with a longer one are left out, and counted.", ge=1)
    max_completion_tokens: int = key("Token budget of a whole trajectory, including observations.", ge=1)
    max_turn_tokens: int | None = key("Token budget of one assistant turn; null allows that of the trajectory.", ge=1)
    cache_tokens: int | None = key(
        "Tokens whose keys and values are kept while transformers samples; where they are used up, episodes wait. Null "
        "takes four longest episodes, at least 65536.",
        ge=1,
        operational=True,
    )
    ahead: int = key(
        "Rollout batches that a vLLM server samples ahead. With 1 it samples the next batch while one trains. Its "
        "weights lack the updates of that batch, and the loss is corrected for it (docs/vllm.md).",
        ge=0,
        le=1,
        older=0,
    )


class ToolRl(Group):
    correct_max1: bool = key("Score correctness in [-1, 1] in place of [-3, 3] (ToolRL's switch CORRECTMAX1).")
    with_length: bool = key("Add a reward for the length of the thought, 1 at 512 words (ToolRL's switch WITHLENGTH).")
    schedule: Literal["none", "smooth", "two_stage"] = key(
        "When the ranges of the reward change.",
        means=("never", "gradually until step 150 (ToolRL's SCHEDULEREWARD)", "at step 30 (ToolRL's MAX1STEP30MAX3)"),
    )


class Reward(Group):
    name: Literal["matching", "ot", "ftrl", "toolrl", "answer"] = key(
        "What an episode earns (docs/rewards.md).",
        means=(
            "each call by its match with a reference call, plus answer F1",
            "the same, but calls are matched by optimal transport",
            "each turn by the sub-answers that it newly solves",
            "format plus correctness of the calls",
            "answer F1 alone",
        ),
    )
    matching: Matching = key(
        "How calls are assigned to reference calls.", means=("optimally, as in the paper", "as in MatchTIR's code")
    )
    answer_tag: bool = key(
        "An answer outside <answer> tags earns 0, as in MatchTIR's code; false takes the whole text."
    )
    unmatched_penalty: float = key("lambda_pen: an unmatched call earns minus this value; the paper has 0.", ge=0)
    ot_reg: float = key(
        "Entropic regularisation of reward=ot; MatchTIR's code uses 0.1.", gt=0, hint=" (MatchTIR: 0.1)"
    )
    ftrl_variant: Literal["f1", "pr", "rate", "precision"] = key(
        "What a turn earns with n calls of which k solve a sub-answer.", means=("2k/(n+1)", "k*k/n", "k", "k/n")
    )
    toolrl: ToolRl = key("Switches of reward=toolrl.")


class Anneal(Group):
    kind: AnnealKind = key("Shape of the schedule.")
    start: float = key("lambda_a, the weight of tool calls in L_SFT, at the first step (eq. 11).", ge=0, le=1)
    end: float = key("lambda_a at the horizon; at most `start`.", ge=0, le=1)
    horizon: float = key(
        "S of eq. 11, as a fraction of the run. PACT does not report it.", gt=0, le=1, hint="; 1 is the whole run"
    )
    num_steps: int = key("For kind=steps: number of equal plateaus from start to end, at least 2.")


class Dual(Group):
    kind: DualUpdate = key(
        "How the multipliers are updated.",
        means=(
            "in proportion to the violation (HIPO)",
            "in steps of about the learning rate",
            "as sgd, with damped oscillation",
            "by a factor",
            "never",
        ),
    )
    initial: float = key("lambda_0 of the default constraint; with kind=fixed lambda stays there.", ge=0)
    learning_rate: float = key("eta_lambda, the step size of the update.", ge=0)
    cap: float = key("lambda_max: multipliers stay in [0, cap].", gt=0, hint=" (the paper: 20)")
    ema_decay: float = key("Decay of the moving average of a constraint's reward; 0 takes the last batch.", ge=0, lt=1)
    warmup: int = key("Number of first rollout batches in which the multipliers do not change.", ge=0)
    beta1: float = key("For kind=adam: decay of the mean violation.", ge=0, lt=1)
    beta2: float = key("For kind=adam: decay of the mean squared violation.", ge=0, lt=1)
    k_p: float = key("For kind=pid: gain on the violation itself; learning_rate is the gain on its integral.", ge=0)
    k_d: float = key("For kind=pid: gain on a fall of the average reward.", ge=0)
    patience: int = key(
        "Report a multiplier after so many batches in a row at the cap, or in which all replies alike met the bound.",
        ge=1,
    )
    on_infeasible: Literal["warn", "stop"] = key(
        "What to do when a multiplier stays at the cap for `patience` batches.",
        means=("report it and go on", "save a checkpoint and stop"),
    )


class Trainer(Group):
    learning_rate: float = key("Peak learning rate of AdamW.", gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = key("Learning-rate schedule.")
    warmup_steps: int = key(
        "Updates in which the learning rate rises linearly from 0, which the first of them has.", ge=0
    )
    weight_decay: float = key("Weight decay of AdamW.", ge=0)
    max_grad_norm: float = key("Norm at which gradients are clipped.", gt=0)
    epochs: float = key("Passes over the training tasks if max_steps is -1.")
    max_steps: Annotated[
        int, Holds(lambda steps: steps == -1 or steps >= 1, "must be 1 or more, or -1 to let epochs decide")
    ] = key("Total number of optimizer updates.")
    tasks: Literal["all", "with_trace"] = key(
        "Tasks to train on.", means=("all", "those with an expert trace, even if the method reads none")
    )
    prompts_per_batch: int = key("Prompts of one rollout batch.", ge=1)
    minibatch_prompts: int = key("Prompts of one optimizer update; must divide prompts_per_batch.", ge=1)
    tokens_per_batch: int = key(
        "Largest number of tokens in a forward pass on a device; lower it if memory runs out. A longer sequence has a "
        "pass of its own. Changes no result except by rounding.",
        ge=1,
        older=30000,
    )
    engine: Literal["auto", "packed", "compiled", "padded"] = key(
        "How an update computes its sequences.",
        means=(
            "packed, or padded with a message if the model or the algorithm cannot be packed",
            "as a prefix tree, each distinct token once",
            "packed, with the layers compiled by torch: updates are faster after about a minute; sampling without vLLM "
            "replays CUDA graphs, which was not measured; needs CUDA",
            "one sequence per row; the slower reference",
        ),
        older="auto",
    )
    save_steps: int = key(
        "Updates between checkpoints, which are saved at the end of a rollout batch; 0 saves only the last one.",
        ge=0,
        operational=True,
    )
    keep_checkpoints: int = key("Number of newest checkpoints to keep; older ones are deleted.", ge=1, operational=True)
    keep_best: str | None = key(
        "Also keep the checkpoint with the highest value of this metric of metrics.jsonl (its mean since the previous "
        "checkpoint); '-name' keeps the lowest.",
        operational=True,
        min_length=1,
    )
    diagnose: int = key(
        "Every how many updates to measure what the terms of a method with expert traces pull at (docs/diagnosis.md); "
        "0 never.",
        ge=0,
        operational=True,
    )
    log_rollouts: int = key("Trajectories of each rollout batch to write to rollouts.jsonl.", ge=0)


class Eval(Group):
    before: bool = key("Evaluate before training.")
    after: bool = key("Evaluate after training.")
    limit: int | None = key("Number of test tasks, drawn anew for each `seed`; null takes all.", ge=1)
    samples: int = key("Trajectories per task.", ge=1)
    temperature: float = key("Sampling temperature; 0 decodes greedily.", ge=0)
    top_p: float = key("Probability mass of nucleus sampling; greedy decoding ignores it.", gt=0, le=1)
    batch: int = key("Episodes played together.", ge=1)


class Faults(Group):
    patience: int = key("Number of times in a row that a fault may occur before the keys below act.", ge=1)
    nonfinite: Literal["stop", "skip"] = key(
        "What to do about NaN or infinity in a gradient or reward.",
        means=("stop at once", "leave out the update or rollout; `patience` updates in a row stop the run"),
    )
    no_signal: Literal["warn", "stop"] = key(
        "What to do after `patience` rollout batches in a row in which all rewards of each group are equal."
    )
    dead_tools: Literal["stop", "continue"] = key(
        "What to do if a tool environment breaks.", means=("stop at once", "count its calls as errors")
    )


class Vllm(Group):
    mode: Literal["off", "colocate", "server"] = key(
        "Who samples the rollouts.",
        means=(
            "transformers",
            "vLLM in the training process, on its GPU",
            "vLLM in a server that you start with the command that dry_run=true prints",
        ),
    )
    url: str = key("Address of that server, without /v1.", operational=True)
    memory: float | None = key(
        "Share of each GPU's memory that vLLM may fill; null leaves it to vLLM (0.3 where it colocates).",
        gt=0,
        le=1,
        operational=True,
    )
    tensor_parallel: int = key("GPUs over which vLLM splits the model.", ge=1, operational=True)
    context: int | None = key(
        "Tokens of the longest context that vLLM takes; null takes what the longest episode needs.", ge=1
    )
    sleep: bool = key("Free vLLM's GPU memory between rollouts; waking it up takes time.", operational=True)
    kv_cache: Literal["auto", "fp8"] = key(
        "Type of vLLM's key-value cache.", means=("the model's", "one byte a value, less precise")
    )
    parity: float | None = key(
        "Most that a token's log-prob may differ between vLLM and trainer, in nats and on average, right after new "
        "weights; null takes 0.001 in float32, 0.1 in 16 bits, 0.3 with an fp8 cache.",
        gt=0,
        operational=True,
    )


class Sweep(Group):
    metric: str | None = key(
        "Number of summary.json that a search over runs optimises, such as eval.after.solve_rate.mean (docs/sweeps.md)."
    )


class Tracker(Group):
    name: Literal["none", "wandb", "wandb_offline", "trackio", "tensorboard"] = key(
        "Tool that shows the run live. The run's files are complete without one."
    )
    project: str = key("Project of the run (W&B, trackio).")
    entity: str | None = key("W&B team or user; null takes the account's default.")
    group: str | None = key("W&B group of runs; null takes the sweep, if there is one.")
    tags: list[str] = key("Further W&B tags of the run, besides algorithm, model and bench.")


class Config(Group):
    """The whole configuration of one run. The `name` of `algo`, `bench` and `judge` selects their class."""

    runs_dir: str = key("Directory that holds all runs.", min_length=1, operational=True, place="written")
    name: Annotated[str, FOLDER] = key("Directory of this experiment in runs_dir.", operational=True)
    run_id: Annotated[str | None, FOLDER] = key(
        "Directory of this run; null derives it from seed and configuration.", operational=True
    )
    seed: int = key(
        "Seed of everything random in the run except generated data.", ge=0, le=2**32 - 1, hint=" (numpy's range)"
    )
    sandbox: Literal["auto", "strict"] = key(
        "What to do if the kernel isolates tool code less than the sandbox needs.", means=("warn and go on", "stop")
    )
    dry_run: bool = key(
        "Validate, estimate tokens, steps and memory, write a run directory that later runs may replace, and stop.",
        operational=True,
    )
    algo: Annotated[Any, OneOf(ALGOS)] = key("Algorithm.")
    model: Model = key("Model.")
    bench: Annotated[Any, OneOf(BENCHES)] = key("Bench.")
    traces: str | None = key(
        "File of expert traces (by agentrl traces build, or yours); null takes the bench's own.", place="data"
    )
    rollout: Rollout = key("How episodes are sampled.")
    reward: Reward = key("How episodes are rewarded.")
    anneal: Anneal = key("How PACT's weight of tool calls changes during training.")
    dual: Dual = key("How the multipliers of HIPO's constraints are updated.")
    trainer: Trainer = key("Optimisation.")
    eval: Eval = key("Evaluation before and after training.")
    faults: Faults = key("What to do when something goes wrong.", operational=True)
    hardware: Hardware = key("Where the run computes.")
    vllm: Vllm = key("Whether and how vLLM samples the rollouts.")
    judge: Annotated[Any, OneOf(JUDGES)] = key("Who grades a response that no program can grade.")
    tracker: Tracker = key("Live tracking.", operational=True)
    sweep: Sweep = key("What a sweep is for.", operational=True)
    scaled_by: list[str] = key(
        "Files of conf/preset/ and conf/limits/ that scaled the values down for the model.",
        default=[],
        operational=True,
        record=True,
    )


VARIANTS: dict[str, Mapping[str, type[Group]]] = {"algo": ALGOS, "bench": BENCHES, "judge": JUDGES}
