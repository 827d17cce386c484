"""TRL's trainer of groups with our loss in place of its own: tensors are put together here, `objectives` has the maths.

Batches, buffers, the forward pass, the optimizer and distribution stay TRL's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import nanmax, nanmin

from agentrl.config.schema import Config
from agentrl.objectives.policy import PolicyBatch, PolicySettings, policy_loss, truncated_weights

Inputs = dict[str, Any]  # a micro-batch, as TRL hands it on: see `AgentGRPOTrainer._generate_and_score_completions`


class LossTrainer(GRPOTrainer):
    """GRPOTrainer whose loss is `objectives.policy.policy_loss`.

    Every term is the value whose mean over the micro-batches of an update is the update's: `_compute_loss` divides
    their sum by the number of micro-batches, since transformers adds them up.
    """

    config: Config
    aux_loss_enabled: bool  # TRL's: the router loss of a mixture of experts
    router_aux_loss_coef: float

    def policy_settings(self) -> PolicySettings:
        """Which policy-gradient loss the run takes."""
        algo = self.config.algo
        return PolicySettings(
            clip_eps=algo.clip_eps,
            aggregation=algo.loss_aggregation,
            kl_coef=algo.kl_coef,
            kl_ratio_correction=algo.kl_ratio_correction,
            entropy_coef=algo.entropy_coef,
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Inputs:
        """TRL's rollout batch. Where vLLM sampled, tokens get weights for what it computes otherwise."""
        batch: Inputs = super()._generate_and_score_completions(inputs)
        if "importance_sampling_ratio" in batch:
            batch["importance_sampling_ratio"] = truncated_weights(
                batch["old_per_token_logps"],
                batch["sampling_per_token_logps"],
                batch["completion_mask"] * batch.get("tool_mask", 1),
                self.vllm_importance_sampling_clip_max,
            )
        return batch

    def _compute_loss(self, model: Any, inputs: Inputs) -> Tensor:
        return self.policy_term(model, inputs) / self.current_gradient_accumulation_steps

    def policy_term(self, model: Any, inputs: Inputs) -> Tensor:
        """The policy-gradient loss of a micro-batch, a scalar; its parts go to the log."""
        settings = self.policy_settings()
        batch, router = self.policy_batch(model, inputs)
        loss, metrics = policy_loss(batch, settings, self.tokens_a_micro_batch(inputs))
        self._log_policy(metrics, batch.mask, settings)
        return loss + self.router_term(router)

    def policy_batch(self, model: Any, inputs: Inputs) -> tuple[PolicyBatch, Tensor | None]:
        """Run the model. Returns what the loss reads, and the router loss of a mixture of experts, else None."""
        logps, entropies, router = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
        )
        batch = PolicyBatch(
            logps=logps,
            advantages=inputs["advantages"],
            mask=inputs["completion_mask"] * inputs.get("tool_mask", 1),
            entropies=entropies,
            old=inputs.get("old_per_token_logps"),
            reference=inputs.get("ref_per_token_logps"),
            sampler_weights=inputs.get("importance_sampling_ratio"),
        )
        return batch, router

    def router_term(self, router: Tensor | None) -> Tensor | float:
        """What a mixture of experts adds to the loss, so that its experts get tokens alike; 0 for other models."""
        if router is None:
            return 0.0
        self.record("aux_loss", router.detach())
        return self.router_aux_loss_coef * router

    def tokens_a_micro_batch(self, inputs: Inputs) -> Tensor:
        """Tokens trained on in an average micro-batch of the rollout batch, on one process."""
        total: Tensor = inputs["num_items_in_batch"].clamp(min=1)
        return total / (self.accelerator.num_processes * self.args.steps_per_generation)

    def record(self, name: str, value: Tensor) -> None:
        """Add a micro-batch's value to the log, as the mean over processes; NaN counts for nothing."""
        self._log_lists()[name].append(self.accelerator.gather(value).nanmean().item())

    def record_means(self, values: dict[str, Tensor], mask: Tensor) -> None:
        """Log the mean, over all processes, of values (B, C) where `mask` (B, C) is on; nothing without any."""
        sums = [value.masked_fill(mask == 0, 0).sum().float() for value in values.values()]
        totals = self.accelerator.reduce(torch.stack([*sums, mask.sum().float()]), reduction="sum")
        if totals[-1] > 0:
            for name, mean in zip(values, (totals[:-1] / totals[-1]).tolist(), strict=True):
                self._log_lists()[name].append(mean)

    def _log_policy(self, metrics: dict[str, Tensor], mask: Tensor, settings: PolicySettings) -> None:
        """The parts of the loss under TRL's names."""
        log = self._log_lists()
        if settings.entropy_coef != 0:
            self.record("policy_loss", metrics["policy_loss"])
            if self.accelerator.sync_gradients:
                log["entropy_coef"].append(settings.entropy_coef)
        low, high = metrics["clip_low"], metrics["clip_high"]
        means = {
            "entropy": metrics["entropy"],
            "clip_ratio/low_mean": low,
            "clip_ratio/high_mean": high,
            "clip_ratio/region_mean": low + high,
        }
        if "kl" in metrics:
            means["kl"] = metrics["kl"]
        self.record_means(means, mask)
        for name, clipped, extreme in (("low_min", low, nanmin), ("high_max", high, nanmax)):
            rows = (clipped * mask).sum(1) / mask.sum(1)  # NaN for a row that nothing is trained on of
            log[f"clip_ratio/{name}"].append(extreme(self.accelerator.gather(rows)).item())

    def _log_lists(self) -> Any:
        """The lists of values that TRL averages into the next log line."""
        return self._metrics["train" if self.model.training else "eval"]
