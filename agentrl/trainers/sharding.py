"""Sharded models: checks that the trainer shards as the run asks, and loads whole weights after training."""

from __future__ import annotations

from pathlib import Path

from accelerate import load_checkpoint_in_model
from accelerate.utils import DistributedType
from peft import PeftModel
from transformers import Trainer

from agentrl.config.accelerate_files import SHARDED, distributed_type
from agentrl.config.hardware import Hardware
from agentrl.core.errors import UserError


def check_sharding(trainer: Trainer, hardware: Hardware) -> None:
    """Let DeepSpeed check gradients for NaN and infinity. Raise UserError if accelerate does not shard as asked."""
    wanted, found = distributed_type(hardware.accelerate_config), trainer.accelerator.distributed_type
    if wanted in SHARDED and found.value != wanted:
        raise UserError(
            f"hardware.accelerate_config={hardware.accelerate_config} asks for {wanted}, but accelerate has taken "
            f"{found.value}: the hardware or the environment drops the plugin; set hardware.accelerate_config=null"
        )
    if found == DistributedType.DEEPSPEED:
        config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
        if "bf16" in config:  # in float32 and float16 it always checks
            config["bf16"]["check_grad_overflow"] = True


def load_trained(trainer: Trainer, checkpoint: Path) -> None:
    """Load the weights of the last checkpoint into the trainer after training. Its model is not sharded any more."""
    model = trainer.model
    if isinstance(model, PeftModel):
        model.load_adapter(str(checkpoint), model.active_adapter, is_trainable=True)
    else:
        load_checkpoint_in_model(model, str(checkpoint))
    trainer.is_fsdp_enabled = trainer.is_deepspeed_enabled = False  # otherwise it would try to save shards
