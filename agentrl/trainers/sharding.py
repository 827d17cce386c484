"""Trainers whose processes share a model out: that they do as the run asks, and whole weights once training is over."""

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
    """Let DeepSpeed look for gradients that are not finite. Raise UserError if accelerate has dropped its plugin."""
    wanted, found = distributed_type(hardware.accelerate_config), trainer.accelerator.distributed_type
    if wanted in SHARDED and found.value != wanted:
        raise UserError(
            f"hardware.accelerate_config={hardware.accelerate_config} asks for {wanted}, but accelerate has taken "
            f"{found.value}: the hardware or the environment drops the plugin; set hardware.accelerate_config=null"
        )
    if found == DistributedType.DEEPSPEED:
        config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
        if "bf16" in config:  # in float32 and float16 it looks anyway
            config["bf16"]["check_grad_overflow"] = True


def load_trained(trainer: Trainer, checkpoint: Path) -> None:
    """Give a trainer that trains no more the weights of its last checkpoint. Its model is whole from now on."""
    model = trainer.model
    if isinstance(model, PeftModel):
        model.load_adapter(str(checkpoint), model.active_adapter, is_trainable=True)
    else:
        load_checkpoint_in_model(model, str(checkpoint))
    trainer.is_fsdp_enabled = trainer.is_deepspeed_enabled = False  # it would save shards, of which there are none
