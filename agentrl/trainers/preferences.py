"""DPO: TRL's DPOTrainer with the loss of this package. Pairs are sampled from the policy and ranked by reward, or read
from a file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedModel, set_seed
from trl import DPOTrainer

from agentrl.chat.format import ChatFormat
from agentrl.config.schema import Config, Model
from agentrl.config.schema import Trainer as Settings
from agentrl.core.bench import Task, TwoSided
from agentrl.core.console import RunConsole
from agentrl.core.engine import Decoding, Episode, RolloutEngine
from agentrl.core.errors import UserError
from agentrl.core.jsonl import UTF_8, numbered_lines, read_json
from agentrl.core.judge import Judge
from agentrl.core.stop import StopRequest, leave_if_asked
from agentrl.evaluation.grading import Rewards, grade_episodes
from agentrl.models.adapters import lora_config
from agentrl.models.modes import evaluating
from agentrl.objectives.preference import dpo_loss, implicit_rewards, reply_log_prob
from agentrl.scoring.choose import scoring_engine
from agentrl.scoring.sequence import Sequence as Tokens
from agentrl.scoring.sequence import score_in_pieces
from agentrl.store.durable import write_text
from agentrl.trainers.arguments import dpo_arguments
from agentrl.trainers.parts import Parts
from agentrl.trainers.passes import CutsUpdates, agree_on_passes
from agentrl.trainers.reference import start_of_adapters, starting_policy

PAIRS = "pairs.jsonl"  # in the run directory; a resumed run reads the pairs instead of sampling them again
FIELDS = ("prompt_ids", "chosen_ids", "rejected_ids")


def best_and_worst(rewards: Sequence[Rewards], sys_weight: float) -> tuple[int, int] | None:
    """Return the indices of the replies with the largest and the smallest r_user + sys_weight * r_sys.

    The first of equal replies is taken. Replies with a missing reward are left out. Return None if all others are
    equal or fewer than two are left.
    """
    totals = {
        index: reward["user"] + sys_weight * reward["sys"]
        for index, reward in enumerate(rewards)
        if reward["user"] is not None and reward["sys"] is not None
    }
    if len(totals) < 2:
        return None
    best, worst = max(totals, key=totals.__getitem__), min(totals, key=totals.__getitem__)
    return (best, worst) if totals[best] > totals[worst] else None


def sampled_pairs(
    engine: RolloutEngine,
    bench: TwoSided,
    judge: Judge | None,
    tasks: Sequence[Task],
    config: Config,
    console: RunConsole,
    stop: StopRequest,
) -> Iterator[dict[str, Any]]:
    """Sample K replies per task, and yield the best and the worst as a pair of token ids if their rewards differ.

    Raises Interrupted between two batches if a signal asked to stop.
    """
    k, decoding = config.rollout.num_generations, Decoding(config.rollout.temperature, config.rollout.top_p)
    batch = max(1, config.eval.batch // k)
    console.start("pairs", len(tasks))
    for start in range(0, len(tasks), batch):
        leave_if_asked(stop)
        part = [task for task in tasks[start : start + batch] for _ in range(k)]
        played = engine.rollout([Episode(task, bench.environment(task)) for task in part], decoding)
        rewards = grade_episodes(bench, judge, part, played)
        for group in range(0, len(part), k):
            pair = best_and_worst(rewards[group : group + k], config.algo.sys_weight)
            if pair is not None:
                chosen, rejected = (group + index for index in pair)
                yield {
                    "task": part[group].id,
                    "prompt_ids": played[chosen].prompt_ids,
                    "chosen_ids": played[chosen].completion_ids,
                    "rejected_ids": played[rejected].completion_ids,
                    "chosen": rewards[chosen],
                    "rejected": rewards[rejected],
                }
        console.update("pairs", min(start + batch, len(tasks)))
    console.finish("pairs")


def file_pairs(path: str, chat: ChatFormat) -> Iterator[dict[str, Any]]:
    """Read pairs from a jsonl file of {"system" (optional), "user", "chosen", "rejected"}. Yield their token ids.

    Raises:
        UserError: the file or a line cannot be read, or the chat template changes the prompt once a reply follows.
    """
    try:
        content = Path(path).expanduser().read_text(encoding=UTF_8)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"algo.pairs={path} cannot be read: {error}") from error
    for number, line in numbered_lines(content):
        try:
            row = read_json(line)
            system, user, replies = row.get("system"), row["user"], (row["chosen"], row["rejected"])
            strings = [user, *replies, *([] if system is None else [system])]
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'algo.pairs={path}, line {number}: not {{"user", "chosen", "rejected"}} ({error})'
            ) from error
        if not all(isinstance(text, str) for text in strings):
            raise UserError(f"algo.pairs={path}, line {number}: system, user, chosen and rejected must be text")
        prompt = [{"role": "system", "content": system}] if system else []
        prompt.append({"role": "user", "content": user})
        prompt_ids = chat.prompt_ids(prompt, [])
        ids = {}
        for name, reply in zip(FIELDS[1:], replies, strict=True):
            whole = chat.training_text([*prompt, {"role": "assistant", "content": reply}], [], generation_prompt=False)
            end = chat.turns.answer_end
            ids[name] = chat.ids(whole[: whole.rfind(end) + len(end)])  # leave out what follows the end token
            if ids[name][: len(prompt_ids)] != prompt_ids:
                raise UserError(
                    f"the chat template of {chat.tokenizer.name_or_path} writes the prompt differently once a reply "
                    "follows, so the reply's tokens cannot be separated from it; choose another model"
                )
            ids[name] = ids[name][len(prompt_ids) :]
        yield {"prompt_ids": prompt_ids, **ids}


def keep_pairs(pairs: Iterator[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Return the pairs in the file `path`. If it does not exist, write `pairs` to it first, all of them or none."""
    if not path.is_file():
        write_text(path, "".join(json.dumps(pair) + "\n" for pair in pairs))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pair_dataset(pairs: list[dict[str, Any]], bench: str) -> Dataset:
    """Make a dataset of `prompt_ids`, `chosen_ids` and `rejected_ids`, one row per pair.

    Raises:
        UserError: there is no pair.
    """
    if not pairs:
        raise UserError(
            f"bench={bench}: no prompt has two replies that differ in reward, so there is no pair to learn from; raise "
            "rollout.num_generations or rollout.temperature, or give algo.pairs=..."
        )
    return Dataset.from_list([{name: pair[name] for name in FIELDS} for pair in pairs])


@dataclass(frozen=True)
class Piece:
    """Some pairs of an update."""

    pairs: list[tuple[Tokens, Tokens]]  # (chosen, rejected), each a prompt and a reply whose tokens are scored
    reference: Tensor  # (P, 2) log-probs of the replies under the reference policy
    pairs_of_update: int


class PairTrainer(CutsUpdates, DPOTrainer):
    """DPO on tokenised rows. The reference is the initial policy; `start` says how that was loaded."""

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        start: Model | None = None,
        peft_config: PeftConfig | None = None,
        settings: Settings,
        say: Callable[[str], None] = print,
        **kwargs: Any,
    ) -> None:
        reference = starting_policy(model, start, peft_config)
        super().__init__(model=model, ref_model=reference, peft_config=peft_config, **kwargs)
        models = [one for one in (self.model, self.ref_model) if one is not None]
        self._budget = settings.tokens_per_batch
        self.scorer = scoring_engine(settings.engine, models, self.aux_loss_enabled, say)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def cut(self, inputs: dict[str, Tensor]) -> list[Piece]:
        """Cut the pairs of TRL's batch into pieces that keep to the token budget."""
        self.count_tokens(inputs["attention_mask"])
        rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), inputs["completion_mask"], strict=True)
        replies = [Tokens(ids[kept].tolist(), reply[kept].nonzero().flatten().tolist()) for ids, kept, reply in rows]
        count = len(replies) // 2  # the chosen ones come first
        pairs = list(zip(replies[:count], replies[count:], strict=True))
        reference = self.reference_log_probs(pairs)
        ranges = self.scorer.cut(pairs, self._budget)
        return [Piece(pairs[one.start : one.stop], reference[one.start : one.stop], count) for one in ranges]

    def reference_log_probs(self, pairs: list[tuple[Tokens, Tokens]]) -> Tensor:
        """Return the log-probs (P, 2) of the replies under the reference policy."""
        model = self.model if self.ref_model is None else self.ref_model
        start = nullcontext() if self.ref_model is not None else start_of_adapters(self.accelerator.unwrap_model(model))
        agree = partial(agree_on_passes, self.accelerator)
        with self.accelerator.autocast(), evaluating(model), start:
            scores = score_in_pieces(
                self.scorer, model, [reply for pair in pairs for reply in pair], self._budget, agree
            )
        return torch.stack([reply_log_prob(one) for one in scores.logps]).view(-1, 2)

    def piece_loss(self, model: Any, piece: Piece) -> Tensor:
        with self.accelerator.autocast():
            replies = [reply for pair in piece.pairs for reply in pair]
            scores = self.scorer.score(model, replies, router=self.aux_loss_enabled)
        policy = torch.stack([reply_log_prob(one) for one in scores.logps]).view(-1, 2)
        rewards = implicit_rewards(policy, piece.reference, self.beta)
        for place, name in enumerate(("chosen", "rejected")):
            values = {f"rewards/{name}": rewards[:, place], f"logps/{name}": policy[:, place]}
            self.log_step.add_means(values)
            self.log_step.add_means({f"logits/{name}": torch.cat(scores.mean_logits[place::2])})
        margins = rewards[:, 0] - rewards[:, 1]
        self.log_step.add_means({"rewards/margins": margins, "rewards/accuracies": (margins > 0).float()})
        self.log_step.add_means({"entropy": torch.cat(scores.entropies)})
        self.log_step.add_means({"mean_token_accuracy": torch.cat(scores.best[::2])})
        loss = dpo_loss(policy, piece.reference, self.beta, piece.pairs_of_update)
        return self.add_router_loss(loss, scores, len(piece.pairs) / piece.pairs_of_update)


def dpo_trainer(parts: Parts) -> PairTrainer:
    """Build the DPO trainer, with the pairs of a file or with pairs sampled now from as many tasks as updates need."""
    config, run, bench, console = parts.config, parts.run, parts.bench, parts.console
    if config.algo.pairs is not None:
        pairs = list(file_pairs(config.algo.pairs, parts.chat))
    else:
        assert isinstance(bench, TwoSided)
        asked = draw_needed(parts.tasks, config)
        sampled = sampled_pairs(parts.engine, bench, parts.judge, asked, config, console, parts.stop)
        pairs = keep_pairs(sampled, run.path / PAIRS)
        console.say(f"{len(pairs)} of {len(asked)} tasks have replies that differ in reward: a pair each")
        set_seed(config.seed)  # so that later draws are the same whether pairs were sampled or read from the file
    return PairTrainer(
        model=parts.model,
        start=config.model,
        args=dpo_arguments(config, run.checkpoints_dir),
        train_dataset=pair_dataset(pairs, bench.name),
        processing_class=parts.chat.tokenizer,
        peft_config=lora_config(config.model),
        settings=config.trainer,
        say=console.say,
    )


def draw_needed(tasks: Sequence[Task], config: Config) -> list[Task]:
    """Draw, by the seed, as many tasks as the updates need, or all tasks if they need more."""
    drawn = random.Random(config.seed).sample(list(tasks), len(tasks))
    steps = config.trainer.max_steps
    return drawn[: steps * config.trainer.minibatch_prompts] if steps > 0 else drawn
