"""The methods by what their classes of keys declare, so that tests of all methods find a new one by themselves."""

from __future__ import annotations

from agentrl.config.algos.grpo import CustomAlgo
from agentrl.config.algos.table import ALGOS
from agentrl.config.traits import MethodKeys

PACKAGED = {name: keys for name, keys in ALGOS.items() if keys is not CustomAlgo}
SIDES = [name for name, keys in PACKAGED.items() if keys.wants == "two sides"]  # those of instruction hierarchies
ROLLOUTS = [name for name, keys in PACKAGED.items() if keys.rollouts and keys.wants == "tools"]
TRACED = [name for name in ROLLOUTS if "traces" in PACKAGED[name].reads]
# Their loss has a term on traces, whatever their keys say; PACT's may have none.
IMITATING = [name for name in TRACED if PACKAGED[name].imitates is MethodKeys.imitates]
