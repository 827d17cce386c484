"""FocalLoRA: adapters on the query rows of conflict-sensitive heads only, trained to attend to the system prompt.

The probe measures each head's attention to the system span at the onset of the response, for conflicting and for
aligned prompts. The loss acts on the first tokens of the replies that the base model itself gives. An adapter on a
query projection would change all heads of a layer. The rows of B of the other heads start at 0, and a mask on their
gradient keeps them there.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, set_seed

from agentrl.chat.format import ChatFormat
from agentrl.config.algos.sides import FocalLora
from agentrl.config.schema import Lora
from agentrl.core.bench import Bench, Task
from agentrl.core.engine import Decoding, Episode, RolloutEngine
from agentrl.core.errors import UserError
from agentrl.core.stop import StopRequest, leave_if_asked
from agentrl.models.onset import onset_attention
from agentrl.models.spans import PromptSpans, prompt_spans
from agentrl.objectives.focal import conflict_sensitivity, focal_loss, most_sensitive
from agentrl.scoring.padded import PaddedEngine
from agentrl.scoring.sequence import STAND_IN
from agentrl.scoring.sequence import Sequence as Tokens
from agentrl.trainers.arguments import focal_arguments
from agentrl.trainers.parts import Parts
from agentrl.trainers.passes import CutsUpdates
from agentrl.trainers.preferences import draw_needed

HEADS = "heads.json"  # in the run directory
FUSED = "qkv_proj"  # the fused projection of Phi models; the rows of the queries come first


def probe(model: PreTrainedModel, chat: ChatFormat, tasks: Sequence[Task], algo: FocalLora, seed: int) -> Tensor:
    """Choose the heads to adapt from `probe_prompts` training prompts of each kind. Return a mask (L, H).

    Raises:
        UserError: the tasks are not of both kinds.
    """
    masses = {}
    for kind in ("conflict", "aligned"):
        drawn = [task for task in tasks if task.data.get("kind") == kind]
        if not drawn:
            raise UserError(f"algo=focal_lora: no training task is of kind {kind}; choose a bench that has both kinds")
        random.Random(seed).shuffle(drawn)
        spans = [prompt_spans(chat, task.prompt, "message") for task in drawn[: algo.probe_prompts]]
        masses[kind] = torch.stack([onset_attention(model, span.ids)[..., span.system].sum(-1) for span in spans])
    return most_sensitive(conflict_sensitivity(masses["conflict"], masses["aligned"]), algo.head_share).cpu()


def focal_config(model: PreTrainedModel, heads: Tensor, lora: Lora) -> LoraConfig:
    """Make the configuration of adapters on the query projections of the layers that have a chosen head.

    Raises:
        UserError: the model has neither q_proj nor qkv_proj.
    """
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    target = "q_proj" if "q_proj" in names else FUSED
    if target not in names:
        raise UserError("algo=focal_lora: this model has no q_proj and no qkv_proj; choose a Llama-like model")
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[target],
        layers_to_transform=heads.any(1).nonzero().flatten().tolist(),
        task_type="CAUSAL_LM",
    )


def keep_to_heads(model: nn.Module, heads: Tensor, head_dim: int) -> None:
    """Mask the gradient of every adapter's B (rows, r), so that the rows of heads that were not chosen stay at 0.

    heads: mask (L, H) of the chosen heads.
    """
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            layer = int(name.split(".layers.")[1].split(".")[0])
            rows = torch.zeros(parameter.shape[0], 1, device=parameter.device)
            rows[: heads.shape[1] * head_dim] = heads[layer].repeat_interleave(head_dim)[:, None].float()
            parameter.register_hook(lambda gradient, rows=rows: gradient * rows.to(gradient))


def focal_rows(
    engine: RolloutEngine,
    bench: Bench,
    chat: ChatFormat,
    tasks: Sequence[Task],
    algo: FocalLora,
    batch: int,
    stop: StopRequest,
) -> list[dict[str, Any]]:
    """Make one training row per task: `input_ids` and the masks `system` and `onset`, all of the same length.

    `input_ids` holds the prompt and the first tokens of the model's greedy reply. `system` marks the system span.
    `onset` marks the queries that predict those reply tokens: the last prompt token and all of them but the last.
    Raises Interrupted between two batches if a signal asked to stop.
    """
    rows = []
    for start in range(0, len(tasks), batch):
        leave_if_asked(stop)
        part = tasks[start : start + batch]
        played = engine.rollout([Episode(task, bench.environment(task)) for task in part], Decoding(0.0))
        for task, trajectory in zip(part, played, strict=True):
            spans: PromptSpans = prompt_spans(chat, task.prompt, "message")
            reply = trajectory.completion_ids[: algo.onset_tokens]
            length, count = len(spans.ids), len(reply)
            rows.append(
                {
                    "input_ids": [*spans.ids, *reply],
                    "system": [*spans.system.tolist(), *[False] * count],
                    "onset": [*[False] * (length - 1), *[True] * count, False],
                }
            )
    return rows


def collate(batch: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Pad rows on the right. Return `input_ids`, `attention_mask`, `system` and `onset`, each (B, T)."""
    width = max(len(row["input_ids"]) for row in batch)

    def padded(name: str, fill: Any) -> Tensor:
        return torch.tensor([[*row[name], *[fill] * (width - len(row[name]))] for row in batch])

    lengths = torch.tensor([len(row["input_ids"]) for row in batch])
    return {
        "input_ids": padded("input_ids", pad_id),
        "attention_mask": (torch.arange(width)[None] < lengths[:, None]).long(),
        "system": padded("system", False),
        "onset": padded("onset", False),
    }


@dataclass(frozen=True)
class Piece:
    """Some rows of an update, padded to the longest of them. Each tensor is (B, T) except `count`."""

    ids: Tensor
    mask: Tensor
    system: Tensor
    onset: Tensor
    count: Tensor  # number of chosen (row, query, head) in the whole update, averaged over the processes


class FocalLoraTrainer(CutsUpdates, Trainer):
    """Minimises `focal_loss`, and logs the mass on the system span as `system_mass`. It always uses padded passes."""

    def __init__(self, *, heads: Tensor, tokens_per_batch: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._heads, self._budget = heads, tokens_per_batch
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list), "eval": defaultdict(list)}

    def cut(self, inputs: dict[str, Tensor]) -> list[Piece]:
        """Cut the rows of `collate` into pieces that keep to the token budget, including padding."""
        mask, onset = inputs["attention_mask"], inputs["onset"]
        self.count_tokens(mask)
        count = self.accelerator.reduce(onset.sum() * self._heads.sum().to(onset.device), reduction="sum")
        count = count / self.accelerator.num_processes
        lengths = mask.sum(1).tolist()
        ranges = PaddedEngine().cut([[Tokens(range(length), [])] for length in lengths], self._budget)
        pieces = []
        for one in ranges:
            rows, longest = slice(one.start, one.stop), max(lengths[one.start : one.stop])
            ids, kept, system, queries = (
                inputs[name][rows, :longest] for name in ("input_ids", "attention_mask", "system", "onset")
            )
            pieces.append(Piece(ids, kept, system, queries, count))
        return pieces

    def piece_loss(self, model: nn.Module, piece: Piece) -> Tensor:
        """See `objectives.focal.focal_loss`."""
        attentions = self._attentions(model, piece.ids, piece.mask)
        heads = self._heads.to(piece.ids.device)
        loss, mass = focal_loss(attentions, piece.system, piece.onset, heads, piece.count)
        self.log_step.add("system_mass", mass)
        return loss

    def idle_loss(self, model: nn.Module) -> Tensor:
        ids = torch.tensor([STAND_IN.ids], device=self.accelerator.device)
        return 0.0 * torch.stack([one.sum() for one in self._attentions(model, ids, torch.ones_like(ids))]).sum()

    def _attentions(self, model: nn.Module, ids: Tensor, mask: Tensor) -> Sequence[Tensor]:
        outputs = model(input_ids=ids, attention_mask=mask, output_attentions=True, use_cache=False, logits_to_keep=1)
        attentions: Sequence[Tensor] = outputs.attentions
        return attentions

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        mine = self._metrics["train" if self.model.training else "eval"]
        logs = {**logs, **{name: sum(values) / len(values) for name, values in mine.items()}}
        mine.clear()
        super().log(logs, *args, **kwargs)


def focal_trainer(parts: Parts) -> FocalLoraTrainer:
    """Choose the heads and write them to heads.json, sample replies of the base model, and add adapters to it."""
    config, run, chat, model, tasks = parts.config, parts.run, parts.chat, parts.model, parts.tasks
    algo, pad_id = config.algo, int(chat.tokenizer.pad_token_id)
    model.set_attn_implementation("eager")  # the only kernel that returns attention weights
    training = model.training
    heads = probe(model.eval(), chat, tasks, algo, config.seed)
    model.train(training)
    chosen = {str(layer): row.nonzero().flatten().tolist() for layer, row in enumerate(heads) if row.any()}
    run.write_json(run.path / HEADS, {"heads": chosen, "of": list(heads.shape)})
    rows = focal_rows(parts.engine, parts.bench, chat, draw_needed(tasks, config), algo, config.eval.batch, parts.stop)
    adapter = focal_config(model, heads, config.model.lora)
    adapted = get_peft_model(model, adapter, revision=config.model.revision)
    size = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    keep_to_heads(adapted, heads, size)
    set_seed(config.seed)
    return FocalLoraTrainer(
        heads=heads,
        tokens_per_batch=config.trainer.tokens_per_batch,
        model=adapted,
        args=focal_arguments(config, run.checkpoints_dir),
        train_dataset=rows,
        data_collator=lambda batch: collate(batch, pad_id),
    )
