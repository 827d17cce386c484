"""PACT (arXiv 2606.16215): GRPO rollouts, an objective that also reads expert traces.

Rollouts are prompt-only and never see h*. Per prompt and step a gate z decides: anchored prompts (z = 1) take the plain
clipped loss L^x; the others take L^h, the same loss with both log-probs under [x; h*], plus beta_SFT * L_SFT on h*.
Both surrogates are one call of TRL's loss, since a row's context is all that differs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import pad

from agentrl.chat.trace_messages import context_ids
from agentrl.chat.trace_tokens import TokenizedTrace, tokenize_trace
from agentrl.core.bench import Task
from agentrl.objectives.pact import anchor_gates, sft_loss, sft_token_weights
from agentrl.objectives.schedules import anneal_value, progress, reasoning_level
from agentrl.trainers.reference import start_of_adapters
from agentrl.trainers.traced import TracedTrainer


@dataclass(frozen=True)
class Privileged:
    """What a prompt is trained with besides its rollouts."""

    context: list[int]  # ids of c^h = [x; h*], or of plain x
    trace: TokenizedTrace | None  # h* as far as it is shown, None where there is none or no turn of it fits
    shown: str  # of the trace: whole, cut (later turns are dropped), none


class PactTrainer(TracedTrainer):
    """L = mean over prompts of (1 - z) (L^h + beta_SFT L_SFT) + z L^x (PACT, eq. 12-14)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._privileged: dict[str, Privileged] = {}
        self._scored: tuple[Tensor, Tensor] | None = None  # log-probs and entropies of the loss's last forward pass

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        rows = range(len(inputs))
        conditioned = [self._conditioned(row) for row in rows]
        self._add_contexts(batch, [row for row in rows if conditioned[row]])
        batch["conditioned"] = torch.tensor(conditioned, device=batch["advantages"].device)
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["anneal/anchored"].append(self._global_mean([float(self._anchored(row)) for row in rows]))
        shown = [self._trace(task).shown for task in self._batch]
        for kind in ("cut", "none"):
            metrics[f"trace/{kind}"].append(self._global_mean([float(one == kind) for one in shown]))
        return batch

    def _conditioned(self, row: int) -> bool:
        """Whether a row's surrogate is L^h: its prompt is not anchored and has a trace of which something is shown."""
        asked = self.config.algo.condition_on_trace and not self._anchored(row)
        return asked and self._trace(self._batch[row]).trace is not None

    def _anchored(self, row: int) -> bool:
        """z of eq. 13 for the prompt of a row of the rollout batch, the same for all rollouts of its group."""
        keys = self._batch_rows[row : row + 1]
        return bool(anchor_gates(self.config.algo.q, self.config.seed, self.state.global_step, keys))

    def trace_beside(self, row: int) -> TokenizedTrace | None:
        """h* without its answer, as the schedules show it; None for an anchored prompt."""
        hidden = self._anchored(row) or self.config.algo.sft_coef == 0
        return None if hidden else self._trace(self._batch[row]).trace

    def teaches(self, row: int, advantages: Tensor) -> bool:
        if self.config.algo.rl_coef == 0:
            return self.trace_teaches(row)
        return super().teaches(row, advantages)

    def _rollout_notes(self) -> list[dict[str, Any]]:
        """Which surrogate a rollout goes into, and the tokens of h* beside it with their weights in L_SFT."""
        notes: list[dict[str, Any]] = []
        for row, task in enumerate(self._batch):
            surrogate = "L^h" if self._conditioned(row) else "L^x"
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
        """The context of every row's ratio, and log-probs of the old and reference policy under it (eq. 7)."""
        batch["context_ids"], batch["context_mask"] = batch["prompt_ids"], batch["prompt_mask"]
        # Every process must run the same forwards; on an anchored row context and prompt are the same.
        shared = self.accelerator.num_processes > 1 and self.config.algo.condition_on_trace
        scored = list(range(len(self._batch))) if shared else conditioned
        if not scored:
            return
        device = batch["prompt_ids"].device
        # A row's own prompt without its padding, or [x; h*] in its place.
        rows = [ids[mask.bool()].cpu() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
        for row in conditioned:
            rows[row] = torch.tensor(self._trace(self._batch[row]).context)
        batch["context_ids"] = pad(rows, self._tokenizer.pad_token_id, padding_side="left").to(device)
        batch["context_mask"] = pad([torch.ones_like(row) for row in rows], 0, padding_side="left").to(device)
        with torch.no_grad():
            if batch.get("old_per_token_logps") is not None:
                batch["prompt_old_logps"] = batch["old_per_token_logps"].clone()  # of a KL term under x
                batch["old_per_token_logps"][scored] = self._logps_in_context(self.model, batch, scored)
            if batch.get("ref_per_token_logps") is not None and self.config.algo.kl_context == "ratio":
                batch["ref_per_token_logps"][scored] = self._reference_logps(batch, scored)

    def _reference_logps(self, batch: dict[str, Any], rows: list[int]) -> Tensor:
        if self.ref_model is not None:
            return self._logps_in_context(self.ref_model, batch, rows)
        with start_of_adapters(self.accelerator.unwrap_model(self.model)):
            return self._logps_in_context(self.model, batch, rows)

    def _logps_in_context(self, model: Any, batch: dict[str, Any], rows: list[int]) -> Tensor:
        """Log-probs (len(rows), C) of the sampled tokens under the rows' contexts."""
        input_ids = torch.cat([batch["context_ids"], batch["completion_ids"]], dim=1)[rows]
        attention_mask = torch.cat([batch["context_mask"], batch["completion_mask"]], dim=1)[rows]
        logps, _, _ = self._get_per_token_logps_and_entropies(
            model,
            input_ids,
            attention_mask,
            batch["completion_ids"].shape[1],
            batch_size=self.args.per_device_train_batch_size,
        )
        return logps

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        algo = self.config.algo
        in_context = {**inputs, "prompt_ids": inputs["context_ids"], "prompt_mask": inputs["context_mask"]}
        loss = inputs["advantages"].new_zeros((), requires_grad=True)  # a micro-batch may have nothing to train on
        if algo.rl_coef > 0:
            surrogate = self._surrogate(model, inputs, in_context)
            loss = loss + algo.rl_coef * surrogate
            self._record("loss/rl", surrogate.detach() * self.current_gradient_accumulation_steps)
        if algo.sft_coef > 0:
            supervised = self.trace_term(model, inputs)
            loss = loss + algo.sft_coef * supervised / self.current_gradient_accumulation_steps
            self._record("loss/sft", supervised.detach())
        return loss

    def _surrogate(self, model: Any, inputs: dict[str, Any], in_context: dict[str, Any]) -> Tensor:
        """L^h for conditioned rows and L^x for the others, KL and entropy terms included."""
        if self.beta == 0 or self.config.algo.kl_context == "ratio":
            loss = super()._compute_loss(model, in_context)
            self._log_contexts(in_context)
            return loss
        # TRL's loss with zero advantages is its KL term: once under x for that, once under c^h without.
        metrics = self._metrics["train" if self.model.training else "eval"]
        logged = {name: len(values) for name, values in metrics.items()}
        beta, entropy = self.beta, self._entropy_bonus_enabled
        try:
            self._entropy_bonus_enabled = False
            no_advantage = torch.zeros_like(inputs["advantages"])
            under_x = {"advantages": no_advantage, "old_per_token_logps": inputs.get("prompt_old_logps")}
            divergence = super()._compute_loss(model, {**inputs, **under_x})
            for name, values in metrics.items():  # of this call only the KL means anything
                if name != "kl":
                    del values[logged.get(name, 0) :]
            metrics["kl/prompt"].append(metrics["kl"][-1])
            self.beta, self._entropy_bonus_enabled = 0.0, entropy
            loss = super()._compute_loss(model, in_context) + divergence
            self._log_contexts(in_context)
            return loss
        finally:
            self.beta, self._entropy_bonus_enabled = beta, entropy

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's log-probs and entropies, kept for the log where they are those of the loss."""
        scored = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if scored[1] is not None:
            self._scored = scored[0].detach(), scored[1].detach()
        return scored

    def _log_contexts(self, inputs: dict[str, Any]) -> None:
        """Entropy, share of clipped tokens and KL of TRL's log, for rows under x and under c^h apart."""
        assert self._scored is not None
        (logps, entropies), self._scored = self._scored, None
        advantages, old, beside = inputs["advantages"], inputs.get("old_per_token_logps"), inputs["conditioned"]
        ratio = torch.ones_like(logps) if old is None else torch.exp(logps - old)
        low, high = (
            (ratio < 1 - self.epsilon_low) & (advantages < 0),
            (ratio > 1 + self.epsilon_high) & (advantages > 0),
        )
        values = {"entropy": entropies, "clip_ratio": (low | high).float()}
        if self.beta > 0:
            delta = inputs["ref_per_token_logps"] - logps
            corrected = ratio if self.config.algo.kl_ratio_correction else 1.0
            values["kl"] = (torch.exp(delta) - delta - 1) * corrected
        mask = inputs["completion_mask"] * inputs["tool_mask"]
        sums: dict[str, list[Tensor]] = {}
        for context, rows in (("prompt", ~beside), ("trace", beside)):
            chosen = mask * rows[:, None]
            for name, value in values.items():
                sums[f"{name}/{context}"] = [value.masked_fill(chosen == 0, 0).sum(), chosen.sum().to(value)]
        totals = self.accelerator.reduce(torch.stack([torch.stack(one) for one in sums.values()]), reduction="sum")
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, (total, count) in zip(sums, totals.tolist(), strict=True):
            if count:
                metrics[name].append(total / count)

    def trace_weights(self, trace: TokenizedTrace) -> Tensor:
        """m_n(s) of eq. 9 at the current update."""
        schedule, anneal = self.config.algo.schedule, self.config.anneal
        done = progress(self.state.global_step, self.state.max_steps, anneal.horizon)
        level = reasoning_level(done, schedule.switch_points)
        scale = anneal_value(anneal.kind, anneal.start, anneal.end, done, anneal.num_steps)
        kept = anneal_value(anneal.kind, 1.0, 0.0, done, anneal.num_steps)
        return sft_token_weights(
            torch.tensor(trace.component),
            torch.tensor(trace.turn),
            torch.tensor(trace.chunk),
            reasoning=schedule.reasoning,
            call=schedule.call,
            level=level,
            kept=kept,
            call_scale=scale,
            call_start=anneal.start,
        )

    def trace_losses(self, logps: Tensor, weights: Tensor, rows: list[int], inputs: dict[str, Any]) -> Tensor:
        return sft_loss(logps, weights, self.config.algo.sft_norm)[0]

    def _trace(self, task: Task) -> Privileged:
        """Context and SFT targets of a task, cut alike."""
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
        """Say once that a trace is too long to be shown at all."""
        known = any(one.shown == "none" for one in self._privileged.values())
        if self._console is not None and not known:
            self._console.say(
                f"warning: no turn of the trace of {task.id} fits algo.trace.max_tokens="
                f"{self.config.algo.trace.max_tokens}, so L^x is taken for it; trace/none in metrics.jsonl counts these"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add where the schedules stand to TRL's log line."""
        if self.model.training:
            algo, anneal = self.config.algo, self.config.anneal
            done = progress(max(self.state.global_step - 1, 0), self.state.max_steps, anneal.horizon)
            self._metrics["train"]["anneal/level"].append(float(reasoning_level(done, algo.schedule.switch_points)))
            self._metrics["train"]["anneal/call_scale"].append(
                anneal_value(anneal.kind, anneal.start, anneal.end, done, anneal.num_steps)
            )
        super().log(logs, start_time)
