"""PACT (arXiv 2606.16215): GRPO rollouts with an objective that also uses expert traces h*.

Rollouts see only the prompt x, never h*. A gate z is drawn per prompt and step. Anchored prompts (z = 1) take the plain
clipped loss L^x. The others take L^h, the same loss with both log-probs under [x; h*], plus beta_SFT * L_SFT on h*.
One call of `objectives.policy.policy_loss` computes both surrogates, since rows differ only in their context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import pad

from agentrl.chat.trace_messages import context_ids
from agentrl.chat.trace_tokens import TokenizedTrace, tokenize_trace
from agentrl.core.bench import Task
from agentrl.objectives.pact import (
    adaptive_q,
    anchor_gates,
    conditioned_weights,
    mixed_loss,
    sft_loss,
)
from agentrl.objectives.policy import PolicyBatch, PolicySettings, divergence_loss, policy_loss
from agentrl.scoring.sequence import Scores, Sequence
from agentrl.trainers.episode_constraints import EpisodeConstrainedTrainer
from agentrl.trainers.fading import FadingTrainer
from agentrl.trainers.loss import Wanted, rollouts_after, trained_tokens
from agentrl.trainers.reference import start_of_adapters


@dataclass(frozen=True)
class Privileged:
    """The context of a prompt's L^h and the targets of its L_SFT."""

    context: list[int]  # ids of c^h = [x; h*], or of plain x if no trace is shown
    trace: TokenizedTrace | None  # the shown part of h*; None if the task has no trace or no turn of it fits
    shown: str  # how much of the trace is shown: whole, cut (later turns are dropped) or none


class PactTrainer(EpisodeConstrainedTrainer, FadingTrainer):
    """L = mean over prompts of (1 - z) (L^h + beta_SFT L_SFT) + z L^x (PACT, eq. 12-14)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._privileged: dict[str, Privileged] = {}
        self._anchoring: list[float] = []  # q of the prompt of each row of the rollout batch

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        rows = range(len(inputs))
        conditioned = [self._is_conditioned(row) for row in rows]
        self._add_contexts(batch, [row for row in rows if conditioned[row]])
        batch["conditioned"] = torch.tensor(conditioned, device=batch["advantages"].device)
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["anneal/q"].append(self._global_mean(self._anchoring))
        metrics["anneal/anchored"].append(self._global_mean([float(self._is_anchored(row)) for row in rows]))
        shown = [self._trace(task).shown for task in self._batch]
        for kind in ("cut", "none"):
            metrics[f"trace/{kind}"].append(self._global_mean([float(one == kind) for one in shown]))
        return batch

    def _is_conditioned(self, row: int) -> bool:
        """Return whether a row's surrogate is L^h: its prompt is not anchored, and some of its trace is shown."""
        asked = self.config.algo.condition_on_trace and not self._is_anchored(row)
        return asked and self._trace(self._batch[row]).trace is not None

    def _is_anchored(self, row: int) -> bool:
        """Return z of eq. 13 for the prompt of a row. It is the same for all rollouts of the group."""
        keys = self._batch_rows[row : row + 1]
        return bool(anchor_gates(self._anchoring[row], self.config.seed, self.state.global_step, keys))

    def _roll_out(self, prompts: list[Any], vllm: Any) -> dict[str, Any]:
        """Play the batch, then set the probability q with which each prompt is anchored."""
        played, algo = super()._roll_out(prompts, vllm), self.config.algo
        self._anchoring = [algo.q] * len(self._batch)
        if algo.q_from != "key":
            self._anchoring = [adaptive_q(algo.q, self.progress_of(algo.q_from, task)) for task in self._batch]
        return played

    def shown_trace(self, task: Task) -> TokenizedTrace | None:
        return self._trace(task).trace

    def context_with_trace(self, task: Task) -> list[int] | None:
        found = self._trace(task)
        return None if found.trace is None else found.context

    def whole_trace(self, task: Task) -> TokenizedTrace | None:
        return self.fade(task)

    def trace_beside(self, row: int) -> TokenizedTrace | None:
        """Return the shown part of h*, without its answer. It is None for an anchored prompt or with sft_coef = 0."""
        hidden = self._is_anchored(row) or self.config.algo.sft_coef == 0
        return None if hidden else self.fade(self._batch[row])

    def teaches(self, row: int, advantages: Tensor) -> bool:
        if self.config.algo.rl_coef == 0:
            return self.trace_teaches(row)
        return super().teaches(row, advantages)

    def _rollout_notes(self) -> list[dict[str, Any]]:
        """Note the surrogate of each rollout, and the tokens of its h* with their weights in L_SFT."""
        notes: list[dict[str, Any]] = []
        for row, task in enumerate(self._batch):
            surrogate = "L^h" if self._is_conditioned(row) else "L^x"
            note: dict[str, Any] = {"surrogate": surrogate, "trace": self._trace(task).shown}
            trace = self.trace_beside(row)
            if trace is not None:
                weights = [round(weight, 4) for weight in self.trace_weights(trace).tolist()]
                tokens = [self._tokenizer.decode([token]) for token in trace.ids]
                note["sft"] = {
                    "tokens": tokens,
                    "component": [int(kind) for kind in trace.component],
                    "weight": weights,
                }
            notes.append(note)
        return notes

    def _add_contexts(self, batch: dict[str, Any], conditioned: list[int]) -> None:
        """Add the context of every row's ratio, and the old and reference policy's log-probs under it (eq. 7)."""
        batch["context_ids"], batch["context_mask"] = batch["prompt_ids"], batch["prompt_mask"]
        device = batch["prompt_ids"].device
        # Each row's context: its own prompt without padding, or [x; h*].
        rows = [ids[mask.bool()].cpu() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
        for row in conditioned:
            rows[row] = torch.tensor(self._trace(self._batch[row]).context)
        batch["context_ids"] = pad(rows, self._tokenizer.pad_token_id, padding_side="left").to(device)
        batch["context_mask"] = pad([torch.ones_like(row) for row in rows], 0, padding_side="left").to(device)
        sequences, mask = rollouts_after(batch, "context"), trained_tokens(batch)
        if batch.get("old_per_token_logps") is not None:
            batch["prompt_old_logps"] = batch["old_per_token_logps"].clone()  # for a KL term under x
            old = self.score_rows(self.model, sequences, conditioned, mask)
            batch["old_per_token_logps"][conditioned] = old[conditioned]
        if self.config.algo.conditioned.weight == "ratio":
            under_x, under_h = (
                self.score_rows(self.model, rollouts_after(batch, context), conditioned, mask)
                for context in ("prompt", "context")
            )
            weights = conditioned_weights(under_h, batch["advantages"], under_x=under_x)
            batch["conditioned_weight"] = weights  # under the policy that sampled; 1 in other rows (log-probs 0)
        if batch.get("ref_per_token_logps") is not None and self.config.algo.kl_context == "ratio":
            reference = self._reference_logps(sequences, conditioned, mask)
            batch["ref_per_token_logps"][conditioned] = reference[conditioned]

    def rows_under_prompt(self, rows: int) -> list[int]:
        """Leave out conditioned rows, unless vLLM sampled or the KL term is under x: only these need them under x."""
        if self.config.vllm.mode != "off" or self.config.algo.kl_context == "prompt":
            return super().rows_under_prompt(rows)
        return [row for row in range(rows) if not self._is_conditioned(row)]

    def tokens_as_sampled(self, inputs: dict[str, Any]) -> Tensor:
        """Leave out conditioned rows: the loss scores them under [x; h*], and they were sampled under x."""
        return super().tokens_as_sampled(inputs) * ~inputs["conditioned"][:, None]

    def _reference_logps(self, sequences: dict[int, Sequence], rows: list[int], mask: Tensor) -> Tensor:
        if self.ref_model is not None:
            return self.score_rows(self.ref_model, sequences, rows, mask)
        with start_of_adapters(self.accelerator.unwrap_model(self.model)):
            return self.score_rows(self.model, sequences, rows, mask)

    def wanted(self, inputs: dict[str, Any]) -> Wanted:
        """Return the rollouts under the contexts of their ratios, and the traces.

        If the KL term is under x, conditioned rollouts are also scored under x.
        """
        algo, wanted = self.config.algo, {}
        if algo.rl_coef > 0:
            wanted["rollouts"] = rollouts_after(inputs, "context")
            if algo.kl_coef > 0 and algo.kl_context == "prompt":
                under_x, conditioned = rollouts_after(inputs, "prompt"), inputs["conditioned"].tolist()
                wanted["under_x"] = {row: one for row, one in under_x.items() if conditioned[row]}
        if algo.sft_coef > 0:
            wanted["traces"] = self.traces_beside(inputs)
        return wanted

    def loss_of(self, inputs: dict[str, Any], scored: dict[str, Scores]) -> Tensor:
        algo = self.config.algo
        rl = sft = inputs["advantages"].new_zeros(())
        if algo.rl_coef > 0:
            rl = self.policy_term(inputs, scored["rollouts"])
            if "under_x" in scored:
                rl = rl + self._divergence_term(inputs, scored["rollouts"], scored["under_x"])
            self.log_step.add("loss/rl", rl)
        if algo.sft_coef > 0:
            sft = self.trace_term(inputs, scored["traces"])
            self.log_step.add("loss/sft", sft)
        return mixed_loss(rl, sft, algo.rl_coef, algo.sft_coef)

    def policy_term(self, inputs: dict[str, Any], scores: Scores) -> Tensor:
        """Compute L^h for conditioned rows and L^x for the others: one loss, with each row under its own context."""
        settings = self.policy_settings()
        if self.config.algo.kl_context == "prompt":
            settings = replace(settings, kl_coef=0.0)  # `_divergence_term` adds it
        batch = self.policy_batch(inputs, scores)
        batch = replace(batch, sampler_weights=self._token_weights(inputs, batch))
        loss, metrics = policy_loss(batch, settings, **self.counts(inputs))
        self._log_policy(metrics, batch.mask, settings)
        self._log_contexts(metrics, batch.mask, inputs["conditioned"])
        return loss

    def policy_settings(self) -> PolicySettings:
        return replace(super().policy_settings(), dual_clip=self.config.algo.dual_clip or math.inf)

    def _token_weights(self, inputs: dict[str, Any], batch: PolicyBatch) -> Tensor | None:
        """Multiply the weights of the sampler's correction by those of the variants of L^h, in conditioned rows."""
        keys, given = self.config.algo.conditioned, batch.sampler_weights
        weights = inputs.get("conditioned_weight")
        if keys.advantages != "all" or keys.floor is not None:
            own = conditioned_weights(batch.logps, batch.advantages, keys.advantages, keys.floor or 0.0)
            own = torch.where(inputs["conditioned"][:, None], own, 1.0)
            weights = own if weights is None else weights * own
        return given if weights is None else weights if given is None else given * weights

    def _divergence_term(self, inputs: dict[str, Any], scores: Scores, under_x: Scores) -> Tensor:
        """Compute the KL term of all rows under x. `under_x` holds the scores of conditioned rows under x."""
        again = iter(zip(under_x.logps, under_x.entropies, strict=True))
        conditioned = inputs["conditioned"].tolist()
        rows = zip(rollouts_after(inputs, "prompt"), scores.logps, scores.entropies, strict=True)
        chosen = [next(again) if conditioned[row] else (logps, entropies) for row, logps, entropies in rows]
        plain = {**inputs, "old_per_token_logps": inputs.get("prompt_old_logps")}
        batch = self.policy_batch(plain, Scores([one for one, _ in chosen], [one for _, one in chosen]))
        counts = self.counts(inputs)
        loss, metrics = divergence_loss(batch, self.policy_settings(), counts["tokens"], counts["rows"])
        self.log_step.add_means(dict.fromkeys(("kl", "kl/prompt"), metrics["kl"]), batch.mask)
        return loss

    def _log_contexts(self, metrics: dict[str, Tensor], mask: Tensor, conditioned: Tensor) -> None:
        """Log entropy, share of clipped tokens and KL separately for rows under x and rows under c^h."""
        values = {"entropy": metrics["entropy"], "clip_ratio": metrics["clip_low"] + metrics["clip_high"]}
        if "kl" in metrics:
            values["kl"] = metrics["kl"]
        for context, rows in (("prompt", ~conditioned), ("trace", conditioned)):
            named = {f"{name}/{context}": value for name, value in values.items()}
            self.log_step.add_means(named, mask * rows[:, None])

    def trace_losses(
        self, logps: Tensor, entropies: Tensor, weights: Tensor, rows: list[int], inputs: dict[str, Any]
    ) -> Tensor:
        return sft_loss(logps, weights, self.config.algo.sft_norm)[0]

    def _trace(self, task: Task) -> Privileged:
        """Return the context and the SFT targets of a task. Both hold the same turns of the trace."""
        if task.id not in self._privileged:
            trace, settings = self.expert_trace(task), self.config.algo.trace
            if trace is None:
                self._privileged[task.id] = Privileged(self.chat.prompt_ids(task.prompt, task.tools), None, "none")
                return self._privileged[task.id]
            shown = trace.without(tuple(settings.drop))
            context, kept = context_ids(self.chat, task, shown, settings.rendering, settings.max_tokens)
            if not kept:
                self._warn_of_length(task)
            cut = replace(shown, turns=shown.turns[:kept])
            tokens = tokenize_trace(self.chat, task, cut) if kept else None
            state = "none" if not kept else "whole" if kept == len(shown.turns) else "cut"
            self._privileged[task.id] = Privileged(context, tokens, state)
        return self._privileged[task.id]

    def _warn_of_length(self, task: Task) -> None:
        """Warn once that a trace is too long to show even one turn."""
        known = any(one.shown == "none" for one in self._privileged.values())
        if self._console is not None and not known:
            self._console.say(
                f"warning: no turn of the trace of {task.id} fits algo.trace.max_tokens="
                f"{self.config.algo.trace.max_tokens}, so L^x is its loss; trace/none in metrics.jsonl counts these"
            )
