"""Converts the configuration of a run to TRL's arguments, and computes the batch sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from trl import DPOConfig, GRPOConfig, SFTConfig

from agentrl.config.schema import Config
from agentrl.config.vllm import longest_context
from agentrl.store.checkpoints import writing_folder


@dataclass(frozen=True)
class BatchPlan:
    """How one process cuts a rollout batch into updates. `trainer.tokens_per_batch` cuts an update further."""

    rows_per_update: int
    updates_per_rollout: int  # optimizer updates per rollout batch


def plan_batches(config: Config) -> BatchPlan:
    """Compute the plan of an RL run. Validation has already checked that the sizes divide evenly."""
    return BatchPlan(
        rows_per_update=config.trainer.minibatch_prompts * config.rollout.num_generations // config.hardware.processes,
        updates_per_rollout=config.trainer.prompts_per_batch // config.trainer.minibatch_prompts,
    )


def shared_arguments(config: Config, checkpoints: Path) -> dict[str, Any]:
    """Make the arguments that all trainers share."""
    trainer, hardware = config.trainer, config.hardware
    return {
        "output_dir": str(writing_folder(checkpoints)),  # sealed and renamed by callbacks.Checkpoints
        "seed": config.seed,
        "data_seed": config.seed,  # otherwise each process would shuffle the dataset with a seed of its own
        "learning_rate": trainer.learning_rate,
        # transformers' plain "constant" ignores the warm-up. Without warm-up the two are the same.
        "lr_scheduler_type": trainer.lr_schedule.replace("constant", "constant_with_warmup"),
        "warmup_steps": trainer.warmup_steps,
        "weight_decay": trainer.weight_decay,
        "max_grad_norm": trainer.max_grad_norm,
        "num_train_epochs": trainer.epochs,
        "max_steps": trainer.max_steps,
        "save_strategy": "no",  # callbacks.Checkpoints decides: only between rollout batches can a run resume exactly
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # the filter would log a loss that is not finite as 0
        "disable_tqdm": True,
        "report_to": [],  # trackers mirror the files; see agentrl.tracking
        "bf16": hardware.bf16,  # TRL's default is True, which on a CPU is many times slower
        "use_cpu": hardware.device == "cpu",
        "dataloader_pin_memory": hardware.device != "cpu",
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "ddp_find_unused_parameters": False,
    }


def grpo_arguments(config: Config, checkpoints: Path) -> GRPOConfig:
    """Make TRL's GRPO arguments for the rollouts under plain prompts, for every RL algorithm."""
    plan, rollout = plan_batches(config), config.rollout
    extra: dict[str, Any] = {}
    length, vllm = "max_new_tokens", config.vllm
    if vllm.mode == "colocate":  # with a server, `rollout.vllm_server` samples, and TRL does not know of it
        length = "max_tokens"  # vLLM's name for it
        # TRL's default masks a whole trajectory by the sum of its log-ratios, which grows with its length.
        extra = {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_tensor_parallel_size": vllm.tensor_parallel,
            "vllm_enable_sleep_mode": vllm.sleep,
            "vllm_max_model_length": longest_context(config),
            "vllm_importance_sampling_mode": "token_truncate",
        }
        if vllm.memory is not None:
            extra["vllm_gpu_memory_utilization"] = vllm.memory
    return GRPOConfig(
        **shared_arguments(config, checkpoints),
        **extra,
        per_device_train_batch_size=plan.rows_per_update,
        gradient_accumulation_steps=1,
        steps_per_generation=plan.updates_per_rollout,
        num_generations=rollout.num_generations,
        max_completion_length=rollout.max_completion_tokens,
        generation_kwargs={length: rollout.max_turn_tokens or rollout.max_completion_tokens},
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        beta=config.algo.kl_coef,  # if it is above 0, TRL scores the reference; loss.py computes the loss itself
        remove_unused_columns=False,
    )


def dataset_arguments(config: Config, checkpoints: Path) -> dict[str, Any]:
    """Make the arguments of trainers that read a dataset, with `minibatch_prompts` rows per update."""
    return {
        **shared_arguments(config, checkpoints),
        "per_device_train_batch_size": config.trainer.minibatch_prompts // config.hardware.processes,
        "gradient_accumulation_steps": 1,  # `trainer.tokens_per_batch` cuts an update, see passes.py
        "remove_unused_columns": False,
    }


def dpo_arguments(config: Config, checkpoints: Path) -> DPOConfig:
    """Make TRL's DPO arguments. The pairs arrive tokenised, so nothing is cut."""
    return DPOConfig(**dataset_arguments(config, checkpoints), beta=config.algo.beta, max_length=None)


def focal_arguments(config: Config, checkpoints: Path) -> TrainingArguments:
    """Make transformers' arguments, without gradient checkpointing: it would not return the attention weights."""
    return TrainingArguments(**dataset_arguments(config, checkpoints) | {"gradient_checkpointing": False})


def sft_arguments(config: Config, checkpoints: Path) -> SFTConfig:
    """Make TRL's SFT arguments. The traces arrive tokenised and labelled, so nothing is cut or prepared."""
    return SFTConfig(
        **dataset_arguments(config, checkpoints),
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
