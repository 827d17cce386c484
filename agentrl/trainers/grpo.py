"""GRPO with or without tools: TRL's GRPOTrainer, with rollouts and advantages of this package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BitsAndBytesConfig, PreTrainedModel, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig

from agentrl.chat.format import ChatFormat
from agentrl.config.schema import Config
from agentrl.core.bench import Bench, ExpertTraces, Task
from agentrl.core.console import RunConsole
from agentrl.core.engine import Episode
from agentrl.core.imports import import_by_name
from agentrl.core.judge import Judge
from agentrl.core.trajectory import Trajectory
from agentrl.objectives.advantages import random_signs, spread_to_tokens
from agentrl.rewards.turns import episode_rewards
from agentrl.rollout.tokens import TokenEngine
from agentrl.scoring.choose import scoring_engine
from agentrl.trainers.ahead import Ahead
from agentrl.trainers.faults import NO_SIGNAL, finite_rewards
from agentrl.trainers.finished import FinishedUpdates
from agentrl.trainers.loss import LossTrainer
from agentrl.trainers.reference import starting_policy, use_as_reference
from agentrl.trainers.rollout_log import RolloutLog
from agentrl.trainers.row_order import EpochSampler, SeedEpochs, crop_padding, restore_row_order
from agentrl.trainers.samplers import policy_sampler, skip_parsing, vllm_cache


class AgentGRPOTrainer(LossTrainer):
    """GRPO with rollouts from a `RolloutEngine` and advantages that may differ between the turns of a rollout.

    It is simpler than TRL's trainer: a trajectory has one reward (the sum of its turn rewards), every process has whole
    groups, and mini-batches keep a prompt's rollouts together.
    """

    # Attributes of TRL that this class reads and sets.
    _buffered_inputs: Any
    beta: float
    control: Any

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        chat: ChatFormat,
        args: GRPOConfig,
        config: Config,
        bench: Bench,
        tasks: list[Task],
        expert_trace: ExpertTraces | None = None,  # in place of the bench's own
        peft_config: PeftConfig | None = None,
        rollout_log: RolloutLog | None = None,
        console: RunConsole | None = None,
        judge: Judge | None = None,  # grades what the bench cannot grade itself
    ) -> None:
        self.config, self.bench, self.tasks, self.chat = config, bench, tasks, chat
        self.expert_trace = expert_trace or bench.expert_trace
        self._rollout_log, self._console, self._judge = rollout_log, console, judge
        self._batch: list[Task] = []
        self._batch_rows: list[int] = []  # indices of the batch's tasks in `tasks`
        self._trajectories: list[Trajectory] = []
        self._turn_rewards: list[list[float]] = []
        if args.use_vllm and config.vllm.context is None:  # the model's own context may be many times an episode's
            longest = model.config.get_text_config().max_position_embeddings
            args.vllm_max_model_length = min(args.vllm_max_model_length, longest)
        needs_reference = args.beta > 0
        quantized = self.reference_quantization(config)
        reference = starting_policy(model, config.model, peft_config, quantized) if needs_reference else None
        with use_as_reference(reference), vllm_cache(config.vllm.kv_cache):
            super().__init__(
                model=model,
                reward_funcs=[self._trajectory_return],
                args=args,
                train_dataset=Dataset.from_list([{"prompt": task.prompt, "task": i} for i, task in enumerate(tasks)]),
                processing_class=chat.tokenizer,
                peft_config=peft_config,
                rollout_func=self._roll_out,
            )
        self.engine = TokenEngine(policy_sampler(self), chat, config, self.show_rollout)
        models = [one for one in (self.model, self.ref_model) if one is not None]
        self.scorer = scoring_engine(config.trainer.engine, models, self.aux_loss_enabled, self._tell)
        self._rows_updated = 0  # number of rows of the rollout batch that have been trained on
        self.rollout_step: int = 0  # the step at which the batch trains that is being sampled
        self._ahead = Ahead(self) if config.rollout.ahead else None
        self._finished = FinishedUpdates(self)
        self.add_callback(self._finished)

    @classmethod
    def check_tasks(cls, config: Config, tasks: Sequence[Task]) -> None:
        """Raise UserError if the method cannot learn from these training tasks."""

    @classmethod
    def reference_quantization(cls, config: Config) -> BitsAndBytesConfig | None:
        """Return how to quantize the reference model. None means to load it like the policy."""
        return None

    def own_callbacks(self) -> list[TrainerCallback]:
        """Return the method's own callbacks. They run after the callbacks that every trainer has."""
        return []

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochSampler:
        sampler = EpochSampler(
            self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )
        self.add_callback(SeedEpochs(sampler))
        self.order = sampler
        return sampler

    def _roll_out(self, prompts: list[Any], _: Any) -> dict[str, Any]:
        """Play the episodes of the batch and keep their trajectories. TRL calls it as its `rollout_func`."""
        trajectories = self._trajectories = self._play()
        # If a prompt fills the context, the completion is empty. TRL reads the last token of every completion, so it
        # gets a token that the policy did not sample: it is never trained on.
        logprobs = [one.logprobs if one.completion_ids else [0.0] for one in trajectories]
        return {
            "prompt_ids": [one.prompt_ids for one in trajectories],
            "completion_ids": [one.completion_ids or one.prompt_ids[-1:] for one in trajectories],
            "logprobs": None if any(one is None for one in logprobs) else logprobs,
            "env_mask": [one.policy_mask or [0] for one in trajectories],
        }

    def _play(self) -> list[Trajectory]:
        """Play the present batch, or take it from `Ahead` with rollout.ahead=1."""
        self.rollout_step = self.state.global_step
        if self._ahead is None or not self.model.training:
            served = self.config.vllm.mode == "server"
            return (self.engine.rollout_together if served else self.engine.rollout)(self.episodes(self._batch))
        played, behind = self._ahead.take(self._batch_rows)
        self._metrics["train"]["sampler/behind"].append(float(behind))
        return played

    def episodes(self, tasks: list[Task]) -> list[Episode]:
        return [Episode(task, self.bench.environment(task)) for task in tasks]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train. At the end, even after an error, cancel a batch that a thread is still playing."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._ahead is not None:
                self._ahead.give_up()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self._ahead is not None:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self._ahead.save(folder)

    def save_now(self) -> None:
        """Save a checkpoint of the updates so far, as at the end of an update."""
        self._save_checkpoint(self.model, trial=None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._ahead is not None and checkpoint is not None:
            self._ahead.load(Path(checkpoint))

    def move_to_device(self) -> None:
        """Move the model to the device now. With FSDP or DeepSpeed, transformers does so only when training starts."""
        if not self.place_model_on_device:
            self._move_model_to_device(self.model, self.args.device)

    def show_rollout(self, waiting: int) -> None:
        """Update the rollout progress bar. `waiting` is the number of episodes that have not ended."""
        if self._console is not None and self.model.training:
            self._console.update("rollout", len(self._batch) - waiting, f"{waiting} sampling")

    def _tell(self, text: str) -> None:
        if self._console is not None:
            self._console.say(text)

    def piece_done(self, piece: dict[str, Any]) -> None:
        """Update the progress bar of the update after a piece."""
        if self._console is None or not self.model.training:
            return
        total = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if self._rows_updated == 0:
            self._console.finish("rollout")
            self._console.start("update", total)
        self._rows_updated = (self._rows_updated + len(piece["completion_ids"])) % total
        self._console.update("update", self._rows_updated or total)
        if self._rows_updated == 0:
            self._console.finish("update")

    def rewards_of(self, task: Task, played: Trajectory) -> list[float]:
        """Return the rewards of an episode's turns."""
        return episode_rewards(self.bench, task, played, self.config.reward, self.state.global_step)

    def _trajectory_return(self, completions: list[Any], **_: Any) -> list[float]:
        """Return R = sum_t r_t of every trajectory, the reward that TRL logs."""
        rewards = [self.rewards_of(task, played) for task, played in zip(self._batch, self._trajectories, strict=True)]
        self._turn_rewards = finite_rewards(rewards, [task.id for task in self._batch], self.config.faults.nonfinite)
        return [sum(rewards) for rewards in self._turn_rewards]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._batch_rows = [row["task"] for row in inputs]
        self._batch = [self.tasks[row] for row in self._batch_rows]
        if self._console is not None:
            self._console.start("rollout", len(self._batch))
        # With rollout.ahead=1 a checkpoint needs the batch that failed.
        with skip_parsing(self._tokenizer), nullcontext() if self._ahead else self._finished.saved_on_failure():
            batch = super()._generate_and_score_completions(inputs)
        batch["advantages"] = self._token_advantages(batch)
        batch["row"] = torch.arange(len(inputs), device=batch["advantages"].device)
        self._log_rollouts(batch["advantages"])
        silent = [not self.teaches(row, batch["advantages"]) for row in range(0, len(inputs), self.num_generations)]
        self._metrics["train" if self.model.training else "eval"][NO_SIGNAL].append(self._global_mean(silent))
        return batch

    def sampled_tokens(self, completion_mask: Tensor) -> Tensor:
        """Return the mask (B, C) of the tokens that the policy sampled in the rollout batch, without tool results."""
        sampled = [torch.tensor(trajectory.policy_mask) for trajectory in self._trajectories]
        padded = pad_sequence(sampled, batch_first=True).to(completion_mask)
        return completion_mask * torch.nn.functional.pad(padded, (0, completion_mask.shape[1] - padded.shape[1]))

    def teaches(self, row: int, advantages: Tensor) -> bool:
        """Return whether the group that begins at `row` has a learning signal: here, an advantage that is not 0."""
        return bool(advantages[row : row + self.num_generations].any())

    def solved(self, tasks: Sequence[Task], played: Sequence[Trajectory]) -> list[bool]:
        """Return whether each episode solves its task, by the solve metric of the bench."""
        scores = [self.bench.score(task, trajectory) for task, trajectory in zip(tasks, played, strict=True)]
        return [(score.metrics.get(self.bench.solve_metric) or 0.0) >= 1 for score in scores]

    def turn_advantages(self, rewards: Tensor, mask: Tensor) -> Tensor:
        """Compute the advantages (B, T) of the turns from their rewards (B, T). An algorithm of your own overrides it.

        `mask` (B, T) is True for the turns that were taken; elsewhere rewards and advantages are 0. The
        `num_generations` rollouts of a prompt are consecutive rows.
        """
        algo, (rows, turns) = self.config.algo, rewards.shape
        groups = (rewards.view(-1, self.num_generations, turns), mask.view(-1, self.num_generations, turns))
        advantages: Tensor = import_by_name(algo.advantages)(*groups, **algo.advantage_arguments())
        advantages = advantages.reshape(rows, turns)
        if algo.has_random_signs():
            signs = random_signs(self.config.seed, self.state.global_step, self._batch_rows)
            advantages = advantages * signs.to(advantages)[:, None]
        return advantages

    def _token_advantages(self, batch: dict[str, Any]) -> Tensor:
        """Return the advantages (B, C): the same value for all tokens of a turn, 0 on observations."""
        rows, turns = len(self._turn_rewards), max(1, *(len(rewards) for rewards in self._turn_rewards))
        rewards = torch.zeros(rows, turns, dtype=torch.float64)
        mask = torch.zeros(rows, turns, dtype=torch.bool)
        for row, values in enumerate(self._turn_rewards):
            rewards[row, : len(values)] = torch.tensor(values, dtype=torch.float64)
            mask[row, : len(values)] = True
        per_turn = self.turn_advantages(rewards, mask)
        width = batch["completion_ids"].shape[1]
        turn = torch.zeros(rows, width, dtype=torch.long)
        policy = torch.zeros(rows, width, dtype=torch.bool)
        for row, trajectory in enumerate(self._trajectories):
            length = len(trajectory.completion_ids)
            # The budget may cut away a turn's message but keep its tokens. They count to the last turn with a reward.
            turn[row, :length] = torch.tensor(trajectory.turn).clamp(max=turns - 1)
            policy[row, :length] = torch.tensor(trajectory.policy_mask).bool()
        return spread_to_tokens(per_turn, turn, policy).float().to(batch["completion_ids"].device)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Undo TRL's shuffle of rows over mini-batches, so that a prompt's rollouts stay in one mini-batch."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training and self._buffered_inputs is not before:
            self._buffered_inputs = [crop_padding(chunk) for chunk in restore_row_order(self._buffered_inputs)]
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def _log_rollouts(self, advantages: Tensor) -> None:
        mode = "train" if self.model.training else "eval"
        scores = [self.bench.score(task, t) for task, t in zip(self._batch, self._trajectories, strict=True)]
        solved = [score.metrics.get(self.bench.solve_metric, 0.0) for score in scores]
        self._metrics[mode]["solve_rate"].append(
            self._global_mean([one for one in solved if one is not None], math.nan)
        )
        cut = [float(trajectory.truncated) for trajectory in self._trajectories]
        self._metrics[mode]["completion/truncated"].append(self._global_mean(cut))
        if any(task.tools for task in self.tasks):
            calls = [call for trajectory in self._trajectories for call in trajectory.calls]
            self._metrics[mode]["tools/error_rate"].append(self._global_mean([float(call.error) for call in calls]))
            self._metrics[mode]["tools/calls"].append(self._global_mean([len(t.calls) for t in self._trajectories]))
        if self._rollout_log is not None and self.accelerator.is_main_process:
            step, notes = self.state.global_step, self._rollout_notes()
            self._rollout_log.write(step, self._trajectories, self._turn_rewards, scores, advantages, notes)

    def _rollout_notes(self) -> list[dict[str, Any]]:
        """Return what the method adds to the logged line of each rollout of the batch."""
        return [{} for _ in self._batch]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Drop metrics that are all NaN, since TRL would turn them into None and fail to print them. Then log."""
        for metrics in self._metrics.values():
            for name in [name for name, values in metrics.items() if all(map(math.isnan, values))]:
                del metrics[name]
        super().log(logs, start_time)

    def _global_mean(self, values: Sequence[float], empty: float = 0.0) -> float:
        """Return the mean over all processes, or `empty` if there are no values."""
        local = torch.tensor([sum(values), len(values)], dtype=torch.float64, device=self.accelerator.device)
        total, count = self.accelerator.reduce(local, reduction="sum").tolist()
        return total / count if count else empty
