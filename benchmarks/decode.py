"""How many operations a decoding step starts: agentrl's sampler beside transformers' `generate` as TRL calls it.

    python benchmarks/decode.py              # tiny, and networks of Qwen3's architecture with 4 and 28 layers
    python benchmarks/decode.py tiny --list  # which operations, too

On a GPU a decoding step of a small model takes as long as the processor needs to start its operations, whatever their
size. Their number can be counted without a GPU. A step is all that happens from one call of the network to the next:
the forward pass of one token per row, the drawing of the next tokens, and the bookkeeping. The median of the steps is
shown. `operations` are those that torch dispatches; `kernels` are those among them that compute something, so views
are left out. An RMS norm that is asked for as one operation counts as one, because CUDA has a kernel for it; a CPU
computes it in six.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from made_up import tiny_layers
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, PreTrainedModel

from agentrl.config.compose import compose
from agentrl.core.engine import Decoding
from agentrl.models.loading import load_model
from agentrl.rollout.continuous import Continuous
from agentrl.rollout.drawing import Draw
from agentrl.rollout.packed import packed
from agentrl.rollout.sampler import Request

TOKENS = 12  # sampled for each row
PROMPTS = [list(range(3, 53)), list(range(3, 43))]  # of different lengths, so TRL pads
ROLLOUTS = 4
VIEWS = {"aten._unsafe_view.default", "aten.lift_fresh.default"}  # views that torch does not call views


class Operations(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Any] = Counter()
        self.within = False  # whether an operation that counts as one is running

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func] += not self.within
        return func(*args, **(kwargs or {}))


class Norms(TorchFunctionMode):
    """Lets an RMS norm count as one operation."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self._operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.rms_norm:
            return func(*args, **(kwargs or {}))
        self._operations.seen[torch.ops.aten._fused_rms_norm.default] += 1
        self._operations.within = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._operations.within = False


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[list[Counter[Any]]]:
    """Count the operations between each call of the model and the next."""
    steps: list[Counter[Any]] = []
    operations = Operations()

    def begin(*_: Any) -> None:
        steps.append(Counter())
        operations.seen = steps[-1]

    hook = model.register_forward_pre_hook(begin)
    with torch.no_grad(), operations, Norms(operations):
        yield steps
    hook.remove()


def by_trl(model: PreTrainedModel) -> list[Counter[Any]]:
    """Sample with `generate`, with the settings that TRL's GRPOTrainer gives it."""
    longest = max(map(len, PROMPTS))
    rows = [prompt for prompt in PROMPTS for _ in range(ROLLOUTS)]
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    settings = GenerationConfig(
        max_new_tokens=TOKENS,
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=None,
        repetition_penalty=1.0,
        pad_token_id=0,
        eos_token_id=[model.config.vocab_size],  # never sampled
        disable_compile=True,
    )
    with counted(model) as steps:
        model.generate(input_ids=ids, attention_mask=(ids != 0).long(), generation_config=settings)
    return steps[1:-1]  # without the prompts, and without the end


def by_agentrl(model: PreTrainedModel) -> list[Counter[Any]]:
    """Sample by continuous batching; rows of one prompt share it."""
    rows = [prompt for prompt in PROMPTS for _ in range(ROLLOUTS)]
    with packed(model), counted(model) as steps:
        session = Continuous(model, Draw(Decoding(1.0, 1.0)), [model.config.vocab_size], 4096, TOKENS, 65536)
        session.sample([Request(number, ids, TOKENS) for number, ids in enumerate(rows)])
    return steps[2:-1]  # without the prompts, and without the end


ARMS: dict[str, Callable[[PreTrainedModel], list[Counter[Any]]]] = {"trl": by_trl, "agentrl": by_agentrl}


def middle(steps: list[Counter[Any]]) -> Counter[Any]:
    """The step with the median number of operations."""
    return sorted(steps, key=Counter.total)[len(steps) // 2]


def kernels(step: Counter[Any]) -> int:
    """How many operations of a step compute something."""
    return sum(number for one, number in step.items() if not one.is_view and str(one) not in VIEWS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["tiny", "4 layers", "28 layers"]
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(names))
    parser.add_argument("--list", action="store_true", help="list the operations of a step")
    asked = parser.parse_args()
    if unknown := set(asked.networks) - set(names):
        parser.error(f"unknown networks: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    print(f"{'network':<12}{'sampled by':<12}{'operations':>12}{'kernels':>10}")
    for name in asked.networks or names:
        model = load_model(compose([]).model) if name == "tiny" else tiny_layers(int(name.split()[0]))
        found = {}
        for arm, sample in ARMS.items():
            found[arm] = middle(sample(model.eval()))
            print(f"{name:<12}{arm:<12}{found[arm].total():>12}{kernels(found[arm]):>10}", flush=True)
        if asked.list:
            for operation in sorted(set().union(*found.values()), key=str):
                print(f"  {operation!s:<50}" + "".join(f"{step[operation]:>8}" for step in found.values()))


if __name__ == "__main__":
    main()
