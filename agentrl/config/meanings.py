"""Suggests what an unknown word probably means: words of other tools, and what they are called here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from agentrl.config.shipped import option_files

# Word in lower case, with underscores in place of dashes -> what to use here. Some words have several meanings.
MEANINGS: dict[str, str] = {
    **dict.fromkeys(("lr", "learning_rate", "learningrate", "actor_lr", "step_size"), "trainer.learning_rate"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_scheduler_type", "schedule"), "trainer.lr_schedule"),
    **dict.fromkeys(("warmup", "warmup_steps", "warmup_ratio", "num_warmup_steps"), "trainer.warmup_steps"),
    **dict.fromkeys(("wd", "decay", "weight_decay"), "trainer.weight_decay"),
    **dict.fromkeys(("grad_norm", "grad_clip", "clip_grad", "max_grad_norm", "clip"), "trainer.max_grad_norm"),
    **dict.fromkeys(("epoch", "epochs", "num_epochs", "num_train_epochs", "n_epochs"), "trainer.epochs"),
    **dict.fromkeys(
        ("steps", "step", "max_steps", "num_steps", "n_steps", "iterations", "iters", "updates", "train_steps"),
        "trainer.max_steps",
    ),
    **dict.fromkeys(
        ("batch", "batch_size", "bs", "train_batch_size", "global_batch_size", "train_batch", "batchsize"),
        "trainer.prompts_per_batch (prompts of a rollout batch) or trainer.minibatch_prompts (of an update)",
    ),
    **dict.fromkeys(
        ("micro_batch", "micro_batch_size", "per_device_train_batch_size", "per_device_batch_size"),
        "trainer.tokens_per_batch (tokens in a forward pass)",
    ),
    **dict.fromkeys(("mini_batch", "minibatch", "minibatch_size", "mini_batch_size"), "trainer.minibatch_prompts"),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "grad_accum", "accumulation_steps", "gradient_accumulation"),
        "trainer.tokens_per_batch (an update of trainer.minibatch_prompts is cut into passes of so many tokens)",
    ),
    **dict.fromkeys(("save", "save_every", "save_freq", "save_interval", "checkpoint_every"), "trainer.save_steps"),
    **dict.fromkeys(("save_total_limit", "keep", "max_checkpoints"), "trainer.keep_checkpoints"),
    **dict.fromkeys(("seeds", "random_seed", "rng_seed"), "seed (several: -m seed=0,1,2)"),
    **dict.fromkeys(
        ("cuda", "gpu", "use_gpu", "use_cuda", "device"), "hardware=gpu (one GPU; several: hardware=multi_gpu)"
    ),
    **dict.fromkeys(
        ("gpus", "n_gpus", "num_gpus", "ngpus", "world_size", "nproc_per_node", "num_processes", "nproc"),
        "hardware=multi_gpu hardware.processes=N",
    ),
    **dict.fromkeys(("nnodes", "num_nodes", "num_machines", "machines"), "hardware.nodes"),
    **dict.fromkeys(("machine_rank", "node_id"), "hardware.node_rank"),
    **dict.fromkeys(("master_addr", "rdzv_endpoint", "main_process_ip"), "hardware.rendezvous=HOST:PORT"),
    **dict.fromkeys(("slurm", "sbatch"), "hardware=slurm"),
    **dict.fromkeys(("cpu", "use_cpu"), "hardware=cpu"),
    **dict.fromkeys(("threads", "num_threads", "cores", "num_workers", "workers"), "hardware.threads"),
    **dict.fromkeys(("bf16", "bfloat16", "mixed_precision", "amp", "fp16"), "hardware.bf16=true"),
    **dict.fromkeys(("dtype", "torch_dtype", "precision"), "model.dtype"),
    **dict.fromkeys(("vllm", "use_vllm", "vllm_mode"), "vllm.mode=server or colocate"),
    **dict.fromkeys(("vllm_url", "vllm_server_base_url", "vllm_server_host"), "vllm.url"),
    **dict.fromkeys(("gpu_memory_utilization", "vllm_gpu_memory_utilization"), "vllm.memory"),
    **dict.fromkeys(("tensor_parallel_size", "vllm_tensor_parallel_size", "tp"), "vllm.tensor_parallel"),
    **dict.fromkeys(("max_model_len", "vllm_max_model_length", "max_model_length"), "vllm.context"),
    **dict.fromkeys(("enable_sleep_mode", "vllm_enable_sleep_mode"), "vllm.sleep"),
    **dict.fromkeys(("kv_cache_dtype", "cache_dtype"), "vllm.kv_cache"),
    **dict.fromkeys(("fsdp", "fsdp2", "accelerate"), "hardware.accelerate_config=fsdp2"),
    **dict.fromkeys(("deepspeed", "zero", "zero2", "zero3"), "hardware.accelerate_config=zero2 or zero3"),
    **dict.fromkeys(("ddp",), "hardware.accelerate_config=ddp"),
    **dict.fromkeys(("lora", "peft", "use_lora", "use_peft", "adapter", "adapters", "qlora"), "model/lora=on"),
    **dict.fromkeys(("lora_r", "lora_rank", "rank", "r"), "model.lora.r (with model/lora=on)"),
    **dict.fromkeys(("lora_alpha", "alpha"), "model.lora.alpha (with model/lora=on)"),
    **dict.fromkeys(("lora_target_modules", "target_modules"), "model.lora.target_modules (with model/lora=on)"),
    **dict.fromkeys(("flash_attn", "flash_attention", "attn", "attention"), "model.attn_implementation"),
    **dict.fromkeys(("gradient_checkpointing", "checkpointing"), "model.gradient_checkpointing"),
    **dict.fromkeys(
        ("model_name", "model_name_or_path", "model_path", "model_id", "base_model", "checkpoint", "ckpt", "policy"),
        "model=NAME (a preset, a run, a directory or a hub id)",
    ),
    **dict.fromkeys(
        ("runs", "run_dir", "output_dir", "out", "output", "outdir", "save_dir", "logdir", "log_dir", "results"),
        "runs_dir",
    ),
    **dict.fromkeys(("experiment_name", "exp_name", "run_name", "exp"), "name"),
    **dict.fromkeys(("id", "runid"), "run_id"),
    **dict.fromkeys(
        ("dataset", "data", "data_path", "dataset_name", "train_file", "data_dir", "task", "tasks", "env", "benchmark"),
        "bench=NAME, and bench.path=FILE for data of your own",
    ),
    **dict.fromkeys(("method", "algorithm", "trainer_type", "loss"), "algo=NAME"),
    **dict.fromkeys(
        (
            "max_tokens",
            "max_new_tokens",
            "max_length",
            "max_completion_length",
            "max_response_length",
            "max_seq_length",
        ),
        "rollout.max_completion_tokens",
    ),
    **dict.fromkeys(("max_prompt_length", "prompt_length", "max_prompt_tokens"), "rollout.max_prompt_tokens"),
    **dict.fromkeys(("max_turns", "turns", "max_rounds", "max_tool_calls"), "rollout.max_turns"),
    **dict.fromkeys(
        ("k", "n", "group", "group_size", "num_generations", "num_rollouts", "rollouts", "n_samples"),
        "rollout.num_generations",
    ),
    "temperature": "rollout.temperature (training) or eval.temperature (evaluation)",
    "temp": "rollout.temperature (training) or eval.temperature (evaluation)",
    "top_p": "rollout.top_p",
    **dict.fromkeys(("compile", "torch_compile", "trainer.compile", "compiled"), "trainer.engine=compiled"),
    **dict.fromkeys(("samples", "eval.n", "eval.k"), "eval.samples"),
    **dict.fromkeys(("limit", "eval_limit", "max_samples", "num_samples"), "eval.limit"),
    **dict.fromkeys(("eval_batch_size", "eval_batch", "eval.batch_size"), "eval.batch"),
    **dict.fromkeys(("kl", "kl_coef", "kl_coeff", "kl_weight", "kl_penalty"), "algo.kl_coef"),
    "beta": "algo.kl_coef (weight of the KL term), or algo.beta with algo=dpo",
    **dict.fromkeys(("entropy", "entropy_coef", "entropy_coeff"), "algo.entropy_coef"),
    **dict.fromkeys(("epsilon", "eps", "clip_eps", "cliprange", "clip_range", "clip_ratio"), "algo.clip_eps"),
    **dict.fromkeys(("gamma", "discount"), "algo.advantage.gamma"),
    **dict.fromkeys(("tau", "threshold"), "algo.tau (algo=hipo)"),
    **dict.fromkeys(("lambda", "multiplier", "dual_lr", "lambda_lr"), "dual.initial or dual.learning_rate (algo=hipo)"),
    **dict.fromkeys(("sft_coef", "beta_sft", "sft_weight"), "algo.sft_coef (algo=pact)"),
    "q": "algo.q (algo=pact)",
    **dict.fromkeys(("wandb", "use_wandb", "wandb_project"), "tracker=wandb"),
    **dict.fromkeys(("tensorboard", "tb"), "tracker=tensorboard"),
    **dict.fromkeys(("report_to", "logger", "logging", "log"), "tracker=NAME"),
    **dict.fromkeys(("project", "entity"), "tracker.project, tracker.entity"),
    **dict.fromkeys(("teacher", "expert", "demonstrations", "demos", "trajectories"), "traces"),
    **dict.fromkeys(("judge_model", "reward_model", "rm"), "judge=openai judge.model=NAME"),
    **dict.fromkeys(("dry", "dryrun", "test_run", "debug"), "dry_run=true"),
    **dict.fromkeys(
        ("resume", "resume_from_checkpoint", "resume_from"), "the same command again: it resumes by itself"
    ),
    **dict.fromkeys(("eval_steps", "eval_every", "do_eval"), "eval.before and eval.after"),
}
# The same for options of a group.
OPTIONS = {
    **dict.fromkeys(("cuda", "nvidia", "1gpu", "single_gpu"), "gpu"),
    **dict.fromkeys(("gpus", "multigpu", "ddp", "fsdp"), "multi_gpu"),
    **dict.fromkeys(("tb",), "tensorboard"),
    **dict.fromkeys(("w&b", "weights_and_biases"), "wandb"),
    **dict.fromkeys(("gpt", "llm", "api", "vllm"), "openai"),
    **dict.fromkeys(("ppo", "rloo", "dapo", "gspo", "rl", "matchtir"), "grpo"),
    **dict.fromkeys(("true", "yes"), "on"),
    **dict.fromkeys(("false", "no"), "off"),
    "mended": "corrected",  # the older name
}
# Keys of older versions. Files of older runs are read without them. The command line refuses them with this text.
REMOVED = {
    "rollout.engine": "was removed: leave it out; vllm.mode=colocate or server samples with vLLM",
    "hardware.vllm": "is vllm.mode now",
    "hardware.vllm_url": "is vllm.url now",
    "objective": "is sweep.metric now",
    "trainer.micro_batch": "was removed: trainer.tokens_per_batch bounds a forward pass in tokens, for every algorithm",
}
GROUPS = ("algo", "model", "bench", "hardware", "reward", "judge", "tracker", "experiment", "sweep", "anneal", "dual")
VERBS = {
    **dict.fromkeys(("train", "run", "start", "fit"), "agentrl algo=... model=... bench=... trains"),
    **dict.fromkeys(("evaluate", "test", "benchmark"), "agentrl eval model=... bench=..."),
    "sweep": "agentrl -m key=a,b, or agentrl sweep=NAME",
    **dict.fromkeys(("help", "usage"), "agentrl --help"),
    "version": "agentrl --version",
    **dict.fromkeys(("check", "diagnose"), "agentrl doctor"),
    **dict.fromkeys(("upload", "publish"), "agentrl push RUN OWNER/NAME"),
    **dict.fromkeys(("view", "rollouts", "inspect"), "agentrl show RUN"),
}


def guess_meaning(word: str) -> str | None:
    """Return what an unknown key probably means, by the whole word or by its last part. None if it is not known."""
    plain = _plain(word)
    return MEANINGS.get(plain) or MEANINGS.get(plain.rsplit(".", 1)[-1])


def suggest(word: str, known: list[str]) -> str:
    """Return '; did you mean X?' for a close match among `known`, else the list to choose from."""
    meant = [OPTIONS[word.lower()]] if OPTIONS.get(word.lower()) in known else None
    close = meant or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; choose from {', '.join(known)}"


def suggest_key(word: str, known: list[str]) -> str:
    """Return '; did you mean X?' for an unknown key: another tool's word, a typing error, a key with the same end."""
    if word in REMOVED:
        return f"; it {REMOVED[word]}"
    if (inside := _in_group(word, known)) is not None:
        return f"; did you mean {inside}?"
    if (lower := word.lower()) != word and lower in (*known, *GROUPS):
        return f"; did you mean {lower}?"
    if (meant := MEANINGS.get(_plain(word))) is not None:
        return f"; did you mean {meant}?"
    if close := _close(word, known, 0.8):
        return f"; did you mean {close}?"
    group, _, last = word.rpartition(".")
    by_last = {key.rsplit(".", 1)[-1]: key for key in reversed(known)}
    meant = guess_meaning(word) or by_last.get(last)
    if meant is None:
        of_group = {key.rsplit(".", 1)[-1]: key for key in known if key.rpartition(".")[0] == group}
        meant = of_group.get(_close(last, list(of_group), 0.45)) if group else _close(word, list(GROUPS), 0.6)
    meant = meant or by_last.get(_close(last, list(by_last), 0.8))
    return f"; did you mean {meant}?" if meant else "; agentrl --help all lists the keys"


def _in_group(word: str, known: list[str]) -> str | None:
    """Return `bench.path` for `ftrl.path`: the key of a group, typed with the name of one of its options."""
    option, _, rest = word.lstrip("+~").partition(".")
    groups = (group for group in GROUPS if option in option_files(group))
    return next((key for group in groups if (key := f"{group}.{rest}") in known), None)


def suggest_verb(word: str, verbs: Iterable[str]) -> str:
    """Return '; did you mean X?' for a bare word in place of a command. The word may be meant as a key."""
    if verb := VERBS.get(word):
        return f"; did you mean {verb}?"
    if close := _close(word, list(verbs), 0.7):
        return f"; did you mean agentrl {close}?"
    if (meant := guess_meaning(word)) is not None:
        return f"; did you mean {meant}{'' if '=' in meant or ':' in meant else '=...'}?"
    return f"; choose from {', '.join(verbs)}" if verbs else "; agentrl --help lists the keys"


def _plain(word: str) -> str:
    return word.strip().lstrip("+~-").replace("-", "_").lower()


def _close(word: str, known: list[str], cutoff: float) -> str:
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=cutoff)), "")
