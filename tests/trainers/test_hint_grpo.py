"""GRPO with hints: which groups are sampled again, under what prompt, and that the loss is under that prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl.chat.trace_messages import TRACE_HEADING
from agentrl.config.vllm import longest_context
from agentrl.core.errors import UserError
from agentrl.objectives.hints import groups_without_success, hint_turns
from tests.rollout.test_rollout import expert_script
from tests.support.helpers import composed, gradient, log_probs, make_trainer, rolled_batch, say, small

PLAIN = ("algo.entropy_coef=0", "algo.kl_coef=0")


def test_failed_groups_and_hints_by_hand() -> None:
    assert groups_without_success([False, True, False, False, True, True], 2) == [2]
    assert groups_without_success([False] * 6, 3) == [0, 3]
    with pytest.raises(ValueError, match="no whole groups"):
        groups_without_success([True] * 5, 2)
    assert [hint_turns(4, share) for share in (0, 0.01, 0.25, 0.26, 0.5, 1)] == [0, 1, 1, 2, 2, 4]
    assert hint_turns(10, 0.7) == 7
    with pytest.raises(ValueError, match="not in"):
        hint_turns(3, 1.1)


def hinting(out: Path, *overrides: str) -> tuple[Any, list[str]]:
    """A trainer that fails at task 1 without a hint, and the prompts that it was asked to continue."""
    trainer = make_trainer(small("algo=hint_grpo", *PLAIN, *overrides), out)
    tokenizer, asked = trainer.processing_class, []

    def speak(request: Any, turn: int) -> list[int]:
        text = tokenizer.decode(request.ids)
        if turn == 0:
            asked.append(text)
        task = next(one for one in trainer._batch if one.prompt[-1]["content"] in text)
        stuck = task.id == trainer.tasks[1].id and TRACE_HEADING.strip() not in text
        said = "<answer>Nobody</answer>" if stuck else expert_script(task, request.episode % 4, turn)
        return [*tokenizer(said, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    say(trainer, speak)
    return trainer, asked


def test_a_group_without_a_success_is_sampled_again_with_a_hint(tmp_path: Path) -> None:
    trainer, asked = hinting(tmp_path)
    batch = rolled_batch(trainer)
    assert len(asked) == 12  # both groups, and the failed one again
    assert not any(TRACE_HEADING.strip() in text for text in asked[:8])
    turns = len(trainer.expert_trace(trainer.tasks[1]).turns)
    assert [note["hint"] for note in trainer._rollout_notes()] == [0] * 4 + [turns] * 4
    context = trainer.context_with_trace(trainer.tasks[1])
    for row in range(8):
        ids = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
        plain = trainer.chat.prompt_ids(trainer.tasks[row // 4].prompt, trainer.tasks[row // 4].tools)
        assert ids == (plain if row < 4 else context) and len(plain) < len(context)
    assert batch["advantages"][4:].any()  # the plain group earned nothing alike
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert (logged["anneal/hint"], logged["hint/failed"], logged["hint/groups"], logged["hint/solved"]) == (
        1,
        0.5,
        0.5,
        1,
    )
    logps, mask = log_probs(trainer, batch), batch["completion_mask"] * batch["tool_mask"]  # under the hinted prompt
    terms = batch["advantages"] * torch.exp(logps - logps.detach()) * mask
    reference = -(terms.sum(1) / mask.sum(1)).mean()
    found = trainer.compute_loss(trainer.model, batch)
    assert found.item() == pytest.approx(reference.item(), abs=1e-5)
    assert torch.allclose(gradient(trainer, found), gradient(trainer, reference), atol=1e-5)


def test_the_hint_shrinks_over_the_run(tmp_path: Path) -> None:
    trainer, _ = hinting(tmp_path)
    trace = trainer.expert_trace(trainer.tasks[1])
    seen = []
    for trainer.state.global_step in range(4):  # of 4: shares of 1, 0.75, 0.5 and 0.25
        rolled_batch(trainer)
        seen.append(trainer._rollout_notes()[4]["hint"])
    assert seen == [hint_turns(len(trace.turns), share) for share in (1, 0.75, 0.5, 0.25)]
    assert len(set(seen)) > 1


@pytest.mark.parametrize("missing", ["hint", "trace"])
def test_without_hints_it_is_grpo(missing: str, tmp_path: Path) -> None:
    gradients = []
    none = ("algo.hint_start=0",) if missing == "hint" else ()
    for keys in (("algo=hint_grpo", *none), ("algo=grpo",)):
        trainer = make_trainer(small(*keys, *PLAIN), tmp_path / keys[0], expert_script)
        if missing == "trace":
            trainer.expert_trace = lambda task: None
        gradients.append(gradient(trainer, trainer.compute_loss(trainer.model, rolled_batch(trainer))))
    assert gradients[0].norm() > 0
    assert torch.equal(*gradients)


def test_a_hint_that_does_not_fit_loses_turns(tmp_path: Path) -> None:
    trainer, _ = hinting(tmp_path, "algo.hint_tokens=1")
    rolled_batch(trainer)
    assert [note["hint"] for note in trainer._rollout_notes()] == [0] * 8
    assert trainer._metrics["train"]["hint/groups"] == [0.0] and trainer._metrics["train"]["hint/failed"] == [0.5]
    assert not trainer._metrics["train"]["hint/solved"]  # no group was sampled again


def test_vllm_has_room_for_the_hint() -> None:
    plain, hinted = (
        longest_context(composed(f"algo={algo}", "rollout.max_prompt_tokens=1000")) for algo in ("grpo", "hint_grpo")
    )
    assert hinted - plain == 1024


def test_sampling_ahead_is_refused() -> None:
    from agentrl.config.rules import validate

    with pytest.raises(UserError, match=r"rollout\.ahead=1: algo=hint_grpo samples some prompts again"):
        validate(composed("algo=hint_grpo", "rollout.ahead=1", "vllm.mode=server"))
