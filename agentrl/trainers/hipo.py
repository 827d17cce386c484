"""HIPO (arXiv 2603.16152): GRPO on single replies with two rewards. A constraint keeps one of them above a threshold.

The primal step is the clipped loss on A = w A_user + sum_k lambda_k A_k. The dual step updates every lambda_k once per
rollout batch, from rewards gathered over all processes. If the multipliers are held fixed, it is the scalarised
baseline. If one of the two weights is 0, it is a baseline that learns from one reward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig

from agentrl.benches.hif.base import is_cut_in_thought
from agentrl.config.constraints import Constraint
from agentrl.config.schema import Config
from agentrl.core.bench import Score, Task
from agentrl.core.errors import UserError
from agentrl.core.imports import import_by_name
from agentrl.evaluation.grading import REWARD_NAMES, SIDES, MissingVerdicts, Rewards, grade_episodes, rewards_to_log
from agentrl.objectives.hipo import is_degenerate
from agentrl.objectives.policy import PolicySettings
from agentrl.trainers.constraints import ConstrainedTrainer

CUT_ADVICE = (
    "were cut by the token budget inside their think block; they have no reward and teach nothing: raise "
    "rollout.max_completion_tokens, or set model.thinking=off (cut_in_thought in metrics.jsonl counts them)"
)
KINDS = ("conflict", "aligned")


class HipoTrainer(ConstrainedTrainer):
    """Maximises E[r_user] subject to E[r_k] >= tau_k, by alternating updates of the policy and of the multipliers."""

    def __init__(self, **kwargs: Any) -> None:
        self._rewards: list[Rewards] = []
        self._filtered: list[bool] = []
        self._cut: list[bool] = []  # whether the token budget cut the reply inside its think block
        self._cut_warned = False
        self._lacking = {reward: MissingVerdicts(f"r_{reward}") for reward in SIDES}
        super().__init__(**kwargs)

    @classmethod
    def check_tasks(cls, config: Config, tasks: Sequence[Task]) -> None:
        """Raise UserError if a constraint is on a kind of prompt that no task has, since it would never bind."""
        kinds = sorted({task.data["kind"] for task in tasks})
        for index, constraint in enumerate(config.algo.constraints):
            if constraint.kind is not None and constraint.kind not in kinds:
                raise UserError(
                    f"algo.constraints.{index}.kind={constraint.kind}: bench={config.bench.name} has no training task "
                    f"of that kind, only {', '.join(kinds)}; name another kind, or null for all prompts"
                )

    @classmethod
    def reference_quantization(cls, config: Config) -> BitsAndBytesConfig | None:
        """Return NF4, as in the paper, if algo.reference=4bit."""
        if config.algo.reference != "4bit" or config.algo.kl_coef == 0:
            return None
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)

    def _trajectory_return(self, completions: list[Any], **_: Any) -> list[float]:
        """Grade the batch and return r_user as TRL's reward. A missing r_user is 0, since TRL would warn about None."""
        algo = self.config.algo
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        self._filtered = [
            is_degenerate(
                [token for token in t.completion_ids if token not in ends], algo.min_tokens, algo.max_repetition
            )
            for t in self._trajectories
        ]
        self._cut = [is_cut_in_thought(trajectory) for trajectory in self._trajectories]
        kept = [row for row, filtered in enumerate(self._filtered) if not filtered]
        graded = grade_episodes(
            self.bench,  # type: ignore[arg-type]
            self._judge,
            [self._batch[row] for row in kept],
            [self._trajectories[row] for row in kept],
        )
        self._rewards = [{"user": None, "sys": None} for _ in self._batch]
        for row, rewards in zip(kept, graded, strict=True):
            self._rewards[row] = rewards
        return [rewards["user"] or 0.0 for rewards in self._rewards]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        filtered = torch.tensor(self._filtered, device=batch["tool_mask"].device)
        batch["tool_mask"] = batch["tool_mask"] * ~filtered.unsqueeze(1)
        batch["num_items_in_batch"] = self.accelerator.gather(
            (batch["completion_mask"] * batch["tool_mask"]).sum()
        ).sum()
        if self.model.training:
            self.update_dual()
        return batch

    def _token_advantages(self, batch: dict[str, Any]) -> Tensor:
        """Return the advantages (B, C): the same value for all tokens of a reply.

        They are computed from the rewards of all processes, since a method may normalise over the whole batch.
        """
        algo, process = self.config.algo, self.accelerator.process_index
        mine = torch.stack([self._column("user", None), *map(self.measured, algo.constraints)], 1)
        rewards = self.accelerator.gather(mine.to(self.accelerator.device)).cpu()
        user, *constraints = rewards.T.reshape(len(algo.constraints) + 1, -1, self.num_generations)
        stacked = torch.stack(constraints) if constraints else user.new_zeros((0, *user.shape))
        compute = import_by_name(algo.advantages)
        advantage = compute(user, stacked, self.dual.values(), algo.user_weight, algo.advantage_eps)
        own = slice(process * len(mine), (process + 1) * len(mine))
        width = batch["completion_ids"].shape[1]
        return advantage.reshape(-1)[own].unsqueeze(1).expand(-1, width).float().to(batch["completion_ids"].device)

    def policy_settings(self) -> PolicySettings:
        return replace(super().policy_settings(), level=self.config.algo.importance_level)

    def _column(self, reward: str, kind: str | None) -> Tensor:
        """Return one reward (B,) of the batch. It is NaN if it is missing, filtered or of another kind of prompt."""
        values = [
            math.nan if rewards[reward] is None or kind not in (None, task.data["kind"]) else rewards[reward]
            for rewards, task in zip(self._rewards, self._batch, strict=True)
        ]
        return torch.tensor(values, dtype=torch.float64)

    def measured(self, constraint: Constraint) -> Tensor:
        return self._column(constraint.reward, constraint.kind)

    def _spread(self, values: Tensor) -> float | None:
        """Return the unbiased standard deviation over all processes of the values that are not NaN.

        It is None if there are fewer than two such values.
        """
        (total, count), (squares, _) = self._sums(values), self._sums(values.square())
        return math.sqrt(max(squares - total**2 / count, 0.0) / (count - 1)) if count > 1 else None

    def _log_rollouts(self, advantages: Tensor) -> None:
        values = {**self._rewards_to_log(), **self._constraints_to_log()}
        for reward, lacking in self._lacking.items():
            missing = [
                math.nan if filtered or cut else float(rewards[reward] is None)
                for rewards, filtered, cut in zip(self._rewards, self._filtered, self._cut, strict=True)
            ]
            count, asked = self._sums(torch.tensor(missing, dtype=torch.float64))
            values[f"missing/{reward}"] = count / asked if asked else None
            if self.model.training and (warning := lacking.add(int(count), int(asked))):
                self._tell(f"warning: {warning}")
        values["filtered"] = self._mean(torch.tensor(self._filtered, dtype=torch.float64))
        values["cut_in_thought"] = self._mean(torch.tensor(self._cut, dtype=torch.float64))
        if values["cut_in_thought"] and not self._cut_warned:
            self._tell(f"warning: {values['cut_in_thought']:.0%} of this batch's replies {CUT_ADVICE}")
            self._cut_warned = True
        groups = advantages.view(-1, self.num_generations * advantages.shape[1])
        values["frac_reward_zero_std"] = self._mean((groups == 0).all(1).double())
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name in [name for name in metrics if name.startswith(("reward", "frac_reward"))]:
            metrics[name].pop()  # TRL's value: it covers r_user only, and counts missing rewards as 0
        for name, value in values.items():
            if value is not None:
                metrics[name].append(value)
        if self._rollout_log is not None and self.accelerator.is_main_process:
            notes = self._rollout_notes()
            scores = [
                Score({name: note[name] for name in REWARD_NAMES if note.get(name) is not None}, task.cluster)
                for note, task in zip(notes, self._batch, strict=True)
            ]
            rows = [[] if rewards["user"] is None else [rewards["user"]] for rewards in self._rewards]
            self._rollout_log.write(self.state.global_step, self._trajectories, rows, scores, advantages, notes)

    def _rewards_to_log(self) -> dict[str, float | None]:
        """Return the means of the rewards, over all prompts and by kind. A proxy for r_user has its own name."""
        stands_in = torch.tensor(["user_proxy" in rewards for rewards in self._rewards])
        user = self._column("user", None)
        values = {"reward": self._mean(user), "reward_std": self._spread(user)}
        for kind in (None, *KINDS):
            user, suffix = self._column("user", kind), f"/{kind}" if kind else ""
            values[f"r_user{suffix}"] = self._mean(user.masked_fill(stands_in, math.nan))
            values[f"user_proxy{suffix}"] = self._mean(user.masked_fill(~stands_in, math.nan))
            values[f"r_sys{suffix}"] = self._mean(self._column("sys", kind))
        return values

    def _constraints_to_log(self) -> dict[str, float | None]:
        """Return the share of replies below the threshold, per constraint and over all, and each multiplier's state."""
        values: dict[str, float | None] = {}
        kinds = [task.data["kind"] for task in self._batch]
        violated, held, unknown = torch.zeros(3, len(kinds), dtype=torch.bool)
        for constraint, multiplier in zip(self.config.algo.constraints, self.dual, strict=True):
            column = self.measured(constraint)
            below, missing = column < constraint.threshold, torch.isnan(column)
            holds = torch.tensor([constraint.kind in (None, kind) for kind in kinds])
            violated, held, unknown = violated | below, held | holds, unknown | (holds & missing)
            values[f"violation/{constraint.name}"] = self._mean(below.double().masked_fill(missing, math.nan))
            # The values that this batch used. The update after this batch shows in the next line.
            values[f"lambda/{constraint.name}"] = float(multiplier.value)
            values[f"tau/{constraint.name}"] = multiplier.threshold
            values[f"ema/{constraint.name}"] = None if math.isnan(multiplier.ema) else float(multiplier.ema)
        # Leave out every reply that lacks a reward, even if its other rewards already violate a constraint. Otherwise
        # violating replies would be counted and the rest left out, which would bias the rate.
        told = held & ~unknown
        for kind in (None, *KINDS):
            counted = told & torch.tensor([kind in (None, one) for one in kinds])
            values["violation_rate" + (f"/{kind}" if kind else "")] = self._mean(violated[counted].double())
        return values

    def _rollout_notes(self) -> list[dict[str, Any]]:
        return [
            {**rewards_to_log(rewards), "filtered": filtered, "kind": task.data["kind"]}
            for rewards, filtered, task in zip(self._rewards, self._filtered, self._batch, strict=True)
        ]
