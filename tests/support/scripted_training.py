"""Training on scripted rollouts: python -m tests.support.scripted_training PROCESSES OUT OVERRIDE...

Several processes are started by torchrun. Log and weights go to OUT/PROCESSES.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from accelerate import PartialState

from tests.rollout.test_rollout import expert_script
from tests.support.helpers import make_trainer, small
from tests.trainers.test_hipo_trainer import reply

processes, out = int(sys.argv[1]), Path(sys.argv[2])
PartialState(cpu=True)
config = small(
    *("algo.kl_coef=0.05", "algo.entropy_coef=0.01", "trainer.learning_rate=1e-3", "trainer.max_steps=2"),
    *("trainer.prompts_per_batch=4", "trainer.minibatch_prompts=4", "trainer.tokens_per_batch=500"),
    *(f"hardware.processes={processes}", *sys.argv[3:]),
)
trainer = make_trainer(config, out / "checkpoints", reply if config.bench.two_sided else expert_script)
trainer.train()
if trainer.accelerator.is_main_process:
    weights = {name: value.double().norm().item() for name, value in trainer.model.named_parameters()}
    (out / f"{processes}.json").write_text(json.dumps({"log": trainer.state.log_history, "weights": weights}))
