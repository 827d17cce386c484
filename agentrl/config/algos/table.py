"""The algorithms: the name of each, and the class of its keys."""

from __future__ import annotations

from agentrl.config.algos.evaluate import Evaluate
from agentrl.config.algos.grpo import CustomAlgo, Grpo
from agentrl.config.algos.pact import Pact
from agentrl.config.algos.sides import Dpo, FocalLora, Hipo, SplitSoftmax
from agentrl.config.algos.traced import Chord, HintGrpo, Luffy, Opsd, Rlsd, Sdar, Sft, Srft
from agentrl.config.traits import MethodKeys

ALGOS: dict[str, type[MethodKeys]] = {
    "pact": Pact,
    "grpo": Grpo,
    "chord": Chord,
    "luffy": Luffy,
    "opsd": Opsd,
    "sdar": Sdar,
    "rlsd": Rlsd,
    "hint_grpo": HintGrpo,
    "srft": Srft,
    "sft": Sft,
    **dict.fromkeys(("hipo", "sys_only", "user_only", "fixed_lambda"), Hipo),
    "dpo": Dpo,
    "split_softmax": SplitSoftmax,
    "focal_lora": FocalLora,
    "eval": Evaluate,
    "custom": CustomAlgo,
}
