"""The rollout is token-exact: ids as sampled, observations as context, turns and components as in the template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from agentrl.benches.minihop import expert_trace
from agentrl.chat.trace_messages import context_ids, trace_text, turn_messages
from agentrl.chat.trace_tokens import tokenize_trace
from agentrl.core.engine import Decoding, Episode
from agentrl.core.expert_trace import Chunk, ExpertTrace, TraceTurn
from agentrl.core.trajectory import Component
from agentrl.models.loading import load_model
from agentrl.rollout import transformers_sampler
from agentrl.rollout.drawing import Draw
from agentrl.rollout.tokens import local_engine
from agentrl.rollout.transformers_sampler import TransformersSampler
from tests.support.helpers import make_trainer, small


def expert_script(task, sample, turn):
    """Sample 0 follows the expert; 1 answers at once; 2 calls an unknown tool; 3 repeats the first call for ever."""
    trace = expert_trace(task)
    if sample == 1:
        return "<answer>Nobody</answer>"
    if sample == 2:
        call = json.dumps({"name": "get_nothing", "arguments": {"x": "y"}})
        return f"I try.\n<tool_call>\n{call}\n</tool_call>" if turn == 0 else "I give up."
    if sample == 0 and turn >= len(trace.turns):
        return f"<answer>{trace.answer}</answer>"
    step = trace.turns[0 if sample == 3 else turn]
    reasoning = "".join(chunk.text for chunk in step.chunks)
    return f"{reasoning}\n<tool_call>\n{json.dumps(step.calls[0])}\n</tool_call>"


@pytest.fixture(scope="module")
def rolled(tmp_path_factory):
    trainer = make_trainer(small("algo=grpo"), tmp_path_factory.mktemp("out"), expert_script)
    batch = trainer._generate_and_score_completions(
        [{"task": i // 4, "prompt": t.prompt} for i, t in enumerate([trainer.tasks[i // 4] for i in range(8)])]
    )
    return trainer, batch


def test_ids_are_those_sampled_and_read_back_as_the_template_writes_them(rolled):
    trainer, batch = rolled
    for row, (task, trajectory) in enumerate(zip(trainer._batch, trainer._trajectories, strict=True)):
        conversation = [*task.prompt, *trajectory.messages]
        rendered = trainer.chat.text(conversation, task.tools, generation_prompt=False)
        ids = trajectory.prompt_ids + trajectory.completion_ids
        assert trainer.processing_class.decode(ids) == rendered.rstrip("\n")
        length = len(trajectory.completion_ids)
        assert batch["completion_ids"][row, :length].tolist() == trajectory.completion_ids
        assert batch["tool_mask"][row, :length].tolist() == trajectory.policy_mask


def test_observations_are_context_and_never_targets(rolled):
    trainer, batch = rolled
    for row, trajectory in enumerate(trainer._trajectories):
        for n, (own, component) in enumerate(zip(trajectory.policy_mask, trajectory.component, strict=True)):
            assert (component == Component.OBSERVATION) == (own == 0)
            if not own:
                assert batch["completion_mask"][row, n] == 1, "an observation must stay in the forward pass"
                assert batch["tool_mask"][row, n] == 0
                assert batch["advantages"][row, n] == 0


def test_components_spell_their_parts(rolled):
    trainer, _ = rolled
    trajectory = trainer._trajectories[0]
    trace = expert_trace(trainer._batch[0])
    tokenizer = trainer.processing_class

    def text(kind, turn):
        ids = [
            i
            for i, c, t in zip(trajectory.completion_ids, trajectory.component, trajectory.turn, strict=True)
            if c == kind and t == turn
        ]
        return tokenizer.decode(ids).strip()

    for number, step in enumerate(trace.turns):
        assert text(Component.REASONING, number) == "".join(chunk.text for chunk in step.chunks)
        assert text(Component.TOOL_CALL, number) == f"<tool_call>\n{json.dumps(step.calls[0])}\n</tool_call>"
        assert step.observations[0] in text(Component.OBSERVATION, number)
    assert text(Component.ANSWER, len(trace.turns)) == f"<answer>{trace.answer}</answer>"


def test_calls_scores_and_rewards_follow_the_script(rolled):
    trainer, _ = rolled
    hops = len(trainer._batch[0].data["chain"])
    expert, guess, unknown, loop = trainer._trajectories[:4]
    scores = [trainer.bench.score(trainer._batch[0], t).metrics for t in (expert, guess, unknown, loop)]
    assert [call.turn for call in expert.calls] == list(range(hops))
    assert scores[0] == {"solve_rate": 1, "answer_correct": 1, "solve_p": 1, "solve_r": 1, "solve_f1": 1}
    assert (scores[1]["solve_r"], scores[1]["solve_p"], scores[1]["answer_correct"]) == (0, 1, 0)
    assert unknown.calls[0].error and unknown.calls[0].observation.startswith("an error occured when call get_nothing")
    # max_turns assistant turns, the last of which may not call any more.
    assert loop.num_turns == trainer.config.rollout.max_turns
    assert len(loop.calls) == loop.num_turns - 1
    assert trainer._turn_rewards[0] == pytest.approx([1.0] * hops + [1.0])
    assert trainer._turn_rewards[1] == [0.0] and trainer._turn_rewards[2] == [0.0, 0.0]
    # One call matches the first reference call; its repetitions stay unmatched.
    assert sum(trainer._turn_rewards[3]) == pytest.approx(1.0)


def test_environments_are_not_shared(rolled):
    trainer, _ = rolled
    calls = [trajectory.calls for trajectory in trainer._trajectories]
    assert [len(c) for c in calls[:4]] != [len(c) for c in calls[1:4]] + [len(calls[0])]
    assert all(
        call.observation in expert_trace(task).turns[call.turn].observations
        for task, row in zip(trainer._batch[::4], calls[::4], strict=True)
        for call in row
    )


def test_greedy_decoding_repeats_itself_and_leaves_the_training_setting(tmp_path: Path, monkeypatch):
    config = small("algo=grpo", "rollout.max_completion_tokens=40", "rollout.temperature=0.9")
    trainer = make_trainer(config, tmp_path)
    task, told = trainer.tasks[0], []

    class Told(Draw):
        def __init__(self, decoding):
            told.append(decoding)
            super().__init__(decoding)

    monkeypatch.setattr(transformers_sampler, "Draw", Told)
    first, second = (
        trainer.engine.rollout([Episode(task, trainer.bench.environment(task))], Decoding(0.0))[0] for _ in range(2)
    )
    trainer.engine.rollout([Episode(task, trainer.bench.environment(task))])
    assert first.completion_ids == second.completion_ids
    assert told == [Decoding(0.0), Decoding(0.0), Decoding(0.9, 1.0)]


def test_an_untrained_model_is_sampled_without_a_trainer_as_with_one(tmp_path: Path):
    config = small("algo=grpo", "rollout.max_completion_tokens=80")
    trainer = make_trainer(config, tmp_path)
    engine = local_engine(config, trainer.chat, load_model(config.model))
    played = []
    for one in (trainer.engine, engine):
        torch.manual_seed(5)
        episodes = [Episode(task, trainer.bench.environment(task)) for task in trainer.tasks[:3]]
        played.append(one.rollout(episodes, Decoding(1.0)))
    assert played[0] == played[1] and len({tuple(one.completion_ids) for one in played[0]}) == 3


def test_base_and_trained_model_are_evaluated_in_the_precision_of_training(tmp_path: Path):
    trainer = make_trainer(small("algo=grpo", "rollout.max_completion_tokens=4", "hardware.bf16=true"), tmp_path)
    task, seen = trainer.tasks[0], set()
    trainer.model.model.register_forward_pre_hook(lambda *_: seen.add(torch.is_autocast_enabled("cpu")))
    trainer.engine.rollout([Episode(task, trainer.bench.environment(task))], Decoding(0.0))
    assert seen == {True}, "bfloat16 autocast, though nothing has been trained yet"


def test_with_sharded_weights_the_first_to_end_takes_part_until_all_have_ended(tmp_path: Path, monkeypatch):
    trainer = make_trainer(small("algo=grpo", "rollout.max_turns=3"), tmp_path)
    asked: list[bool | int] = []
    others = iter([True, True, False])  # two turns more elsewhere than here

    def any_process(here: bool) -> bool:
        asked.append(here)
        return here or next(others)

    def generate(self, prompts, generation):
        asked.append(generation.max_new_tokens)
        call = json.dumps(expert_trace(trainer.tasks[0]).turns[0].calls[0])
        text = f"<tool_call>\n{call}\n</tool_call>"
        return [[*trainer.chat.ids(text), trainer.processing_class.eos_token_id] for _ in prompts]

    monkeypatch.setattr(transformers_sampler, "any_process", any_process)
    monkeypatch.setattr(TransformersSampler, "sharded", True)
    monkeypatch.setattr(TransformersSampler, "generate", generate)
    trainer._generate_and_score_completions([{"task": 0, "prompt": trainer.tasks[0].prompt} for _ in range(4)])
    limit = trainer.config.rollout.max_turn_tokens
    assert asked == [True, limit] * 3 + [False, 1, False, 1, False]


def test_expert_trace_tokens_carry_components_turns_and_chunks(rolled):
    trainer, _ = rolled
    chat, tokenizer = trainer.chat, trainer.processing_class
    for task in trainer.tasks:
        trace = expert_trace(task)
        tokens = tokenize_trace(chat, task, trace, with_answer=True)
        played = [message for turn in trace.turns for message in turn_messages(turn, "content")]
        answer = {"role": "assistant", "content": f"<answer>{trace.answer}</answer>"}
        whole = chat.ids(chat.text([*task.prompt, *played, answer], task.tools, generation_prompt=False))
        assert tokens.prompt_ids + tokens.ids == whole
        for index, turn in enumerate(trace.turns):
            for number, chunk in enumerate(turn.safe_chunks()):
                ids = [
                    i
                    for i, t, k in zip(tokens.ids, tokens.turn, tokens.chunk, strict=True)
                    if t == index and k == number
                ]
                # A token that spans the end of one chunk and the start of the next belongs to the next.
                assert tokenizer.decode(ids).strip(". \n") == chunk.text.strip(". ")
        preview = [k for k, c in zip(tokens.chunk, tokens.component, strict=True) if c == Component.REASONING and k < 0]
        assert bool(preview) == any(len(t.safe_chunks()) < len(t.chunks) for t in trace.turns)


def test_the_context_shows_the_trace_without_the_final_answer_turn(rolled):
    trainer, _ = rolled
    task = trainer.tasks[0]
    trace = expert_trace(task)
    assert f"<answer>{trace.answer}" not in trace_text(trace)
    ids, kept = context_ids(trainer.chat, task, trace, "message", 1000)
    text = trainer.processing_class.decode(ids)
    assert kept == len(trace.turns) and trace_text(trace) in text and text.endswith("<|im_start|>assistant\n")
    shorter, kept = context_ids(
        trainer.chat, task, trace, "message", len(ids) - len(trainer.chat.prompt_ids(task.prompt, task.tools)) - 1
    )
    assert kept == len(trace.turns) - 1 and len(shorter) < len(ids)
    assert context_ids(trainer.chat, task, trace, "turns", 1000)[1] == len(trace.turns)


def test_prefix_levels_are_cumulative_and_stop_before_a_preview():
    chunks = tuple(Chunk("task_restate", str(n)) for n in range(5))
    turn = TraceTurn((*chunks, Chunk("explicit_call_preview", "f(x)"), Chunk("other", "z")), (), ())
    assert [len(turn.prefix(level)) for level in range(5)] == [0, 1, 2, 3, 5]
    with pytest.raises(ValueError, match=r"0\.\.4"):
        turn.prefix(5)
    trace = ExpertTrace("a", (turn,), "y", "generated")
    assert trace.without(("reasoning",)).turns[0].chunks == ()
    with pytest.raises(ValueError, match="unknown trace parts"):
        trace.without(("calls",))


def test_arguments_that_are_no_object_are_failed_calls_of_their_own_turn(tmp_path: Path):
    def script(task, sample, turn):
        good = json.dumps(expert_trace(task).turns[0].calls[0])
        bad = json.dumps({"name": expert_trace(task).turns[0].calls[0]["name"], "arguments": '["Kibra"]'})
        return f"\n<tool_call>\n{bad if turn == 0 else good}\n</tool_call>" if turn < 2 else "<answer>x</answer>"

    trainer = make_trainer(small("algo=grpo"), tmp_path, script)
    trainer._generate_and_score_completions([{"task": 0, "prompt": trainer.tasks[0].prompt}] * 4)
    first, second = trainer._trajectories[0].calls
    assert (first.turn, first.error) == (0, True)
    assert (second.turn, second.error) == (1, False)
    complaint = trainer._trajectories[0].messages[1]["content"]
    assert complaint.startswith(f"an error occured when call {first.name}: ")
    assert complaint.endswith("argument after ** must be a mapping, not list")


def test_a_result_that_the_budget_dropped_was_not_obtained(tmp_path: Path):
    first_turn = (
        len(
            make_trainer(small("algo=grpo"), tmp_path).chat.ids(
                expert_script(make_trainer(small("algo=grpo"), tmp_path).tasks[0], 0, 0)
            )
        )
        + 1
    )
    config = small("algo=grpo", f"rollout.max_completion_tokens={first_turn + 3}", "rollout.max_turn_tokens=null")
    trainer = make_trainer(config, tmp_path, expert_script)
    trainer._generate_and_score_completions([{"task": 0, "prompt": trainer.tasks[0].prompt}] * 4)
    trajectory = trainer._trajectories[0]
    assert trajectory.messages[-1]["role"] == "assistant"
    assert trajectory.calls == [] and trajectory.truncated
    # The text beside a call that was not answered is no answer either.
    assert trainer._turn_rewards[0] == [0.0]


def test_evaluation_runs_in_evaluation_mode_and_gives_training_mode_back(tmp_path: Path):
    trainer = make_trainer(small("algo=grpo", "rollout.max_completion_tokens=8", "rollout.max_turn_tokens=8"), tmp_path)
    seen = []
    trainer.model.model.register_forward_pre_hook(lambda module, *_: seen.append(module.training))
    task = trainer.tasks[0]
    trainer.model.train()
    trainer.engine.rollout([Episode(task, trainer.bench.environment(task))], Decoding(0.0))
    assert set(seen) == {False} and trainer.model.training


def test_a_template_that_drops_reasoning_is_refused_not_mislabelled(rolled):
    from dataclasses import replace

    from agentrl.core.errors import UserError

    trainer, _ = rolled
    task = trainer.tasks[0]
    silent = trainer.processing_class.chat_template.replace(
        "{{- message.content or '' }}", "{{- '' if message.tool_calls else message.content }}"
    )
    with pytest.raises(UserError, match="drops the reasoning of a turn"):
        tokenize_trace(replace(trainer.chat, template=silent), task, expert_trace(task))
