"""TRL's GRPOTrainer with the loss of this package. This module assembles tensors; `objectives` has the mathematics.

TRL still handles rollout batches, buffers, the optimizer and distribution. `passes.py` cuts an update into pieces.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.distributed import DistributedBackend
from trl.trainer.utils import nanmax, nanmin

from agentrl.config.schema import Config
from agentrl.models.modes import evaluating
from agentrl.objectives.policy import PolicyBatch, PolicySettings, policy_loss
from agentrl.scoring.sequence import Scores, Sequence, score_in_pieces
from agentrl.trainers.mismatch import compare_with_sampler, log_first_pass
from agentrl.trainers.passes import CutsUpdates, agree_on_passes, run_idle_pass, through_head

Inputs = dict[str, Any]  # rows of a rollout batch in TRL's format, see `_generate_and_score_completions`
Wanted = dict[str, dict[int, Sequence]]  # the sequences that a loss needs scored, by term and by row


class LossTrainer(CutsUpdates, GRPOTrainer):
    """GRPOTrainer whose loss is `objectives.policy.policy_loss`.

    Shapes: B rows, C completion tokens. A method overrides `wanted`, which returns the sequences that its loss needs
    scored, and `loss_of`, which computes the loss from the scores. One forward pass scores everything; it computes
    shared prefixes once.
    """

    config: Config
    aux_loss_enabled: bool  # set by TRL: whether the router loss of a mixture of experts is trained on

    def policy_settings(self) -> PolicySettings:
        """Return the settings of the policy-gradient loss."""
        algo = self.config.algo
        return PolicySettings(
            clip_eps=algo.clip_eps,
            aggregation=algo.loss_aggregation,
            kl_coef=algo.kl_coef,
            kl_ratio_correction=algo.kl_ratio_correction,
            entropy_coef=algo.entropy_coef,
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Inputs:
        """Make TRL's rollout batch. If there are log-probs of vLLM, compare them with the trainer's and add weights."""
        batch: Inputs = super()._generate_and_score_completions(inputs)
        if batch.get("sampling_per_token_logps") is not None:
            compare_with_sampler(self, batch)
        return batch

    def rows_under_prompt(self, rows: int) -> list[int]:
        """Return the rows of a rollout batch that need old and reference log-probs under their prompt: here, all."""
        return list(range(rows))

    def tokens_as_sampled(self, inputs: Inputs) -> Tensor:
        """Return the mask (B, C) of the tokens that the loss scores in the context that they were sampled in.

        Here, these are all trained tokens.
        """
        return trained_tokens(inputs)

    def sampled_tokens(self, completion_mask: Tensor) -> Tensor:
        """Return the mask (B, C) of the tokens that the policy sampled in a rollout batch: here, `completion_mask`."""
        return completion_mask

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **_: Any
    ) -> tuple[Tensor, None, None]:
        """Return the log-probs (B, C) of a rollout batch's sampled tokens under the old or the reference policy.

        They are 0 at all other tokens and in rows that are not needed. TRL calls this; the loss itself calls the
        scoring engine.
        """
        prompt, completion = input_ids[:, :-logits_to_keep], input_ids[:, -logits_to_keep:]
        masks = attention_mask[:, :-logits_to_keep], attention_mask[:, -logits_to_keep:]
        sampled = self.sampled_tokens(masks[1])
        sequences = row_sequences(prompt, masks[0], completion, masks[1], sampled)
        return self.score_rows(model, sequences, self.rows_under_prompt(len(completion)), sampled), None, None

    def score_rows(self, model: Any, sequences: dict[int, Sequence], rows: list[int], mask: Tensor) -> Tensor:
        """Score the sequences of some rows without a graph. Return log-probs (B, C), 0 where `mask` (B, C) is off."""
        scored = [row for row in rows if row in sequences]
        scores = self.score_sequences(model, [sequences[row] for row in scored])
        there = torch.zeros_like(mask)
        there[scored] = mask[scored]
        return spread(scores.logps, there)

    def score_sequences(self, model: Any, sequences: list[Sequence]) -> Scores:
        """Score sequences without a graph, within the token budget. All processes must call it together.

        Dropout of adapters is off meanwhile, since it is not part of the policy.
        """
        agree = partial(agree_on_passes, self.accelerator)
        still = evaluating(model) if self.config.model.lora.dropout > 0 else nullcontext()
        with still, self.accelerator.autocast():
            return score_in_pieces(self.scorer, model, sequences, self.config.trainer.tokens_per_batch, agree)

    def wanted(self, inputs: Inputs) -> Wanted:
        """Return the sequences that the loss needs scored: here, the rollouts under their prompts."""
        return {"rollouts": rollouts_after(inputs, "prompt")}

    def loss_of(self, inputs: Inputs, scored: dict[str, Scores]) -> Tensor:
        """Compute the loss of some rows, a scalar, from the scores of the `wanted` sequences, in the same order."""
        return self.policy_term(inputs, scored["rollouts"])

    def cut(self, inputs: Inputs) -> list[Inputs]:
        """Cut the rows of a mini-batch into pieces whose forward passes keep to the token budget."""
        wanted = self.wanted(inputs)
        rows = len(inputs["completion_ids"])
        groups = [[of_rows[row] for of_rows in wanted.values() if row in of_rows] for row in range(rows)]
        # The mean over processes, so that what they average is the mean over the tokens of all of them.
        tokens = self.accelerator.reduce(trained_tokens(inputs).sum().float(), reduction="mean")
        whole = {"rows_of_update": rows, "tokens_of_update": tokens}
        ranges = self.scorer.cut(groups, self.config.trainer.tokens_per_batch)
        return [{**piece_of(inputs, one, rows), **whole} for one in ranges]

    def idle_loss(self, model: Any) -> Tensor:
        return run_idle_pass(self.scorer, model, self.policy_settings().entropy_coef != 0)

    def piece_loss(self, model: Any, inputs: Inputs) -> Tensor:
        wanted = self.wanted(inputs)
        sequences = [one for of_rows in wanted.values() for one in of_rows.values()]
        scores = Scores([], [])
        if sequences:
            with self.accelerator.autocast():
                scores = self.scorer.score(model, sequences, router=self.aux_loss_enabled)
        scored, start = {}, 0
        for name, of_rows in wanted.items():
            own = slice(start, start + len(of_rows))
            scored[name], start = Scores(scores.logps[own], scores.entropies[own]), own.stop
        if "rollouts" in scored:
            logps = spread(scored["rollouts"].logps, trained_tokens(inputs))
            log_first_pass(self, inputs, logps.detach(), self.tokens_as_sampled(inputs))
        loss = self.loss_of(inputs, scored)
        if not sequences:
            loss = loss + self.idle_loss(model)
        elif DistributedBackend(self.accelerator).is_zero3:
            loss = loss + through_head(scores, self.policy_settings().entropy_coef != 0)
        loss = self.add_router_loss(loss, scores, len(inputs["completion_ids"]) / rows_of_update(inputs))
        return loss / self.current_gradient_accumulation_steps

    def policy_term(self, inputs: Inputs, scores: Scores) -> Tensor:
        """Compute the policy-gradient loss of rows, a scalar, and log its parts."""
        settings = self.policy_settings()
        batch = self.policy_batch(inputs, scores)
        loss, metrics = policy_loss(batch, settings, **self.counts(inputs))
        self._log_policy(metrics, batch.mask, settings)
        return loss

    def policy_batch(self, inputs: Inputs, scores: Scores) -> PolicyBatch:
        """Assemble the input of `policy_loss` from the scores of the rows."""
        mask = trained_tokens(inputs)
        return PolicyBatch(
            logps=spread(scores.logps, mask),
            advantages=inputs["advantages"],
            mask=mask,
            entropies=spread(scores.entropies, mask),
            old=inputs.get("old_per_token_logps"),
            reference=inputs.get("ref_per_token_logps"),
            sampler_weights=inputs.get("importance_sampling_ratio"),
        )

    def counts(self, inputs: Inputs) -> dict[str, Any]:
        """Return the denominators of the sums over a piece, as keywords of `policy_loss`."""
        total: Tensor = inputs["num_items_in_batch"].clamp(min=1)
        return {
            # the number of tokens in an average mini-batch of the rollout batch, on one process
            "tokens": total / (self.accelerator.num_processes * self.args.steps_per_generation),
            "rows": rows_of_update(inputs),
            "trained": inputs.get("tokens_of_update"),
        }

    def _log_policy(self, metrics: dict[str, Tensor], mask: Tensor, settings: PolicySettings) -> None:
        """Log the parts of the loss under TRL's names."""
        log = self.log_step
        if settings.entropy_coef != 0:
            log.add("policy_loss", metrics["policy_loss"])
            log.constant("entropy_coef", settings.entropy_coef)
        low, high = metrics["clip_low"], metrics["clip_high"]
        means = {
            "entropy": metrics["entropy"],
            "clip_ratio/low_mean": low,
            "clip_ratio/high_mean": high,
            "clip_ratio/region_mean": low + high,
        }
        if "kl" in metrics:
            means["kl"] = metrics["kl"]
        log.add_means(means, mask)
        for name, clipped, extreme in (("low_min", low, nanmin), ("high_max", high, nanmax)):
            rows = (clipped * mask).sum(1) / mask.sum(1)  # NaN for a row without trained tokens
            log.add_extreme(f"clip_ratio/{name}", rows, extreme)


def rows_of_update(inputs: Inputs) -> int:
    """Return the number of rows in the mini-batch that `inputs` is a piece of, or all of."""
    rows: int = inputs.get("rows_of_update", len(inputs["completion_ids"]))
    return rows


def piece_of(inputs: Inputs, rows: range, count: int) -> Inputs:
    """Return the rows in `rows` of a mini-batch with `count` rows.

    As in TRL's buffer, every list and every tensor with a dimension has one entry per row. Scalars belong to the whole
    mini-batch and stay as they are. Raises ValueError if a list or a tensor has another number of entries.
    """
    piece = {}
    for name, value in inputs.items():
        if isinstance(value, list) or (isinstance(value, Tensor) and value.dim() > 0):
            if len(value) != count:
                raise ValueError(f"{name} of a rollout batch has {len(value)} entries, but there are {count} rows")
            value = value[rows.start : rows.stop]
        piece[name] = value
    return piece


def trained_tokens(inputs: Inputs) -> Tensor:
    """Return the mask (B, C) of the completion tokens in the loss: those that the policy sampled, no tool results."""
    mask: Tensor = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    return mask


def row_sequences(
    before: Tensor, before_mask: Tensor, after: Tensor, after_mask: Tensor, scored: Tensor
) -> dict[int, Sequence]:
    """Join padded rows of ids `before` (B, P) and `after` (B, C) to sequences, by row.

    `scored` (B, C) marks the tokens to score. A row without such tokens has no sequence.
    """
    parts = (before, before_mask.bool(), after, after_mask.bool(), scored.bool())
    sequences = {}
    for row, (first, first_mask, second, second_mask, wanted) in enumerate(zip(*(p.cpu() for p in parts), strict=True)):
        context, places = first[first_mask].tolist(), wanted[second_mask].nonzero().flatten()
        if len(places):
            sequences[row] = Sequence(context + second[second_mask].tolist(), (places + len(context)).tolist())
    return sequences


def rollouts_after(inputs: Inputs, context: str) -> dict[int, Sequence]:
    """Return every row's completion after its `<context>_ids` as a sequence that scores the `trained_tokens`."""
    before, after = ((inputs[f"{part}_ids"], inputs[f"{part}_mask"]) for part in (context, "completion"))
    return row_sequences(*before, *after, trained_tokens(inputs))


def spread(values: list[Tensor], mask: Tensor) -> Tensor:
    """Put the values of rows, in order, into a tensor (B, C) where `mask` (B, C) is on. Elsewhere it is 0."""
    whole = torch.zeros(mask.shape, dtype=values[0].dtype if values else torch.float32, device=mask.device)
    return whole.masked_scatter(mask.bool(), torch.cat(values)) if values else whole
