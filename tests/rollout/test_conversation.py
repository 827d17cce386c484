"""Episodes whose user speaks again: same tokens as TRL's loop where nobody does, the user's words as observations."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from agentrl.chat.reading import TokenReader, read_turn
from agentrl.chat.trace_messages import trace_text, turn_messages
from agentrl.chat.trace_tokens import tokenize_trace
from agentrl.core.bench import Conversation
from agentrl.core.engine import Decoding, Episode
from agentrl.core.expert_trace import Chunk, ExpertTrace, TraceTurn
from agentrl.core.trajectory import Component, ToolCall
from agentrl.models.loading import load_model
from agentrl.rollout.tokens import TokenEngine
from agentrl.trainers.arguments import grpo_arguments
from tests.support.helpers import Scripted, composed, make_trainer, say, small


class Talk:
    """Two further requests; the second step of a turn is its last."""

    def __init__(self, later=("And then?", "Thanks, anything else?"), steps=2):
        self.later, self.steps, self.made = list(later), steps, 0

    def call(self, name, arguments, turn):
        return ToolCall(turn, name, arguments, f"{name} did {json.dumps(arguments)}")

    def next_message(self):
        self.made = 0
        return self.later.pop(0) if self.later else None

    def continue_episode(self):
        self.made += 1
        return self.made < self.steps


def call(name):
    return f"I call.\n<tool_call>\n{json.dumps({'name': name, 'arguments': {'x': 1}})}\n</tool_call>"


def play(trainer, scripts, environments):
    """Rows follow their scripts, one text a turn; ~ at the end of a text cuts the turn before its end token."""
    tokenizer = trainer.processing_class

    def speak(request, turn):
        said = scripts[request.episode][turn]
        ids = tokenizer(said.rstrip("~"), add_special_tokens=False)["input_ids"]
        return ids if said.endswith("~") else [*ids, tokenizer.eos_token_id]

    usual = trainer.engine.sampler
    say(trainer, speak)
    tasks = [trainer.tasks[row] for row in range(len(scripts))]
    episodes = [Episode(task, environment) for task, environment in zip(tasks, environments, strict=True)]
    try:
        return tasks, trainer.engine.rollout(episodes)
    finally:
        trainer.engine.sampler = usual


class RowEnvironment:
    """What TRL insists on when tools vary by row."""

    def reset(self, **row):
        pass

    def placeholder(self):
        """Never offered to the model; TRL looks for at least one public method.

        Returns:
            Nothing.
        """


def trls_own(config, chat, tasks, environments, out, monkeypatch):
    """What TRL's own loop makes of the episodes, with our reader: ids, mask and messages of every row."""
    args = grpo_arguments(config, out)
    args.max_tool_calling_iterations = config.rollout.max_turns - 1
    rows = Dataset.from_list([{"prompt": task.prompt} for task in tasks])
    stock = GRPOTrainer(
        model=load_model(config.model),
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        args=args,
        train_dataset=rows,
        processing_class=chat.tokenizer,
        environment_factory=RowEnvironment,
    )
    stock.chat_template = chat.template
    reader = TokenReader(chat.tokenizer)
    monkeypatch.setattr(grpo_trainer, "parse_response", lambda _, ids, **__: read_turn(reader.text(ids)))

    class Tools(dict):
        def __init__(self, row):
            self.row = row

        def __contains__(self, name):
            return True

        def __getitem__(self, name):
            return lambda **arguments: environments[self.row].call(name, arguments, 0).observation

    stock._batch_environments = list(range(len(tasks)))
    stock._env_tools = {row: task.tools for row, task in enumerate(tasks)}
    stock._sync_tool_dicts = [Tools(row) for row in range(len(tasks))]
    stock._async_tool_dicts = [{} for _ in tasks]
    torch.manual_seed(3)
    _, ids, masks, messages, *_ = stock._generate([task.prompt for task in tasks])
    return ids, masks, messages


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return make_trainer(small("algo=grpo", "rollout.max_turns=12"), tmp_path_factory.mktemp("out"))


def test_the_loop_agrees_with_trls_where_nobody_speaks(tmp_path, monkeypatch):
    config = small("algo=grpo", "rollout.max_completion_tokens=200", "rollout.max_turns=4", "rollout.temperature=1e-4")
    trainer = make_trainer(config, tmp_path)
    tasks = [trainer.tasks[row // 2] for row in range(8)]
    torch.manual_seed(3)
    played = trainer.engine.rollout([Episode(task, trainer.bench.environment(task)) for task in tasks])
    fresh = [trainer.bench.environment(task) for task in tasks]
    ids, masks, messages = trls_own(config, trainer.chat, tasks, fresh, tmp_path, monkeypatch)
    assert [own.completion_ids for own in played] == ids
    assert [own.policy_mask for own in played] == masks
    assert [own.messages for own in played] == messages
    assert any(0 in mask for mask in masks), "no tool was called: nothing was compared"


def test_the_user_speaks_after_a_turn_without_calls(trainer):
    scripts = [[call("a"), "Done.", "Nothing to do.", call("b"), "Bye."], ["Hello.", "Yes.", call("c"), "End."]]
    tasks, played = play(trainer, scripts, [Talk(), Talk()])
    roles = [[message["role"][0] for message in trajectory.messages] for trajectory in played]
    assert roles == [list("ataua") + list("uata"), list("auaua") + list("ta")]
    for task, trajectory in zip(tasks, played, strict=True):
        conversation = [*task.prompt, *trajectory.messages]
        rendered = trainer.chat.text(conversation, task.tools, generation_prompt=False)
        decoded = trainer.processing_class.decode(trajectory.prompt_ids + trajectory.completion_ids)
        assert decoded == rendered.rstrip("\n")
        for own, component in zip(trajectory.policy_mask, trajectory.component, strict=True):
            assert (component == Component.OBSERVATION) == (own == 0)
        sampled = [i for i, own in zip(trajectory.completion_ids, trajectory.policy_mask, strict=True) if own]
        assert "And then?" not in trainer.processing_class.decode(sampled)
    assert [made.turn for made in played[0].calls] == [0, 3]
    assert not played[0].truncated


def test_a_step_limit_ends_the_episode_with_what_was_executed(trainer):
    (task, *_), (trajectory,) = play(trainer, [[call("a"), call("b"), "never sampled"]], [Talk()])
    assert [message["role"] for message in trajectory.messages] == ["assistant", "tool", "assistant", "tool"]
    assert [made.name for made in trajectory.calls] == ["a", "b"]
    assert task.id == trajectory.task_id


def test_a_turn_that_the_budget_cut_is_closed_by_the_environment(trainer):
    _, (trajectory,) = play(trainer, [["And so on~", "Fine."]], [Talk(later=["Go on."])])
    text = trainer.processing_class.decode(trajectory.completion_ids)
    assert "And so on<|im_end|>\n<|im_start|>user\nGo on.<|im_end|>" in text
    position = len(trainer.processing_class("And so on", add_special_tokens=False)["input_ids"])
    assert trajectory.policy_mask[:position] == [1] * position and trajectory.policy_mask[position] == 0


def test_a_call_in_a_turn_that_the_budget_cut_is_made_and_the_turn_closed(trainer):
    unclosed = call("a").removesuffix("\n</tool_call>")
    _, (trajectory,) = play(trainer, [[f"{unclosed}~", "Fine."]], [Talk(later=[])])
    text = trainer.processing_class.decode(trajectory.completion_ids)
    assert f"{unclosed}<|im_end|>\n<|im_start|>user\n<tool_response>\na did" in text
    assert [made.name for made in trajectory.calls] == ["a"] and not trajectory.truncated


def test_a_message_that_exceeds_the_budget_ends_the_episode(trainer):
    _, (trajectory,) = play(trainer, [["Hello.", "never sampled"]], [Talk(later=["word " * 5000])])
    assert [message["role"] for message in trajectory.messages] == ["assistant"] and trajectory.truncated


def test_only_environments_that_speak_are_conversations(trainer):
    assert isinstance(Talk(), Conversation)
    assert not isinstance(trainer.bench.environment(trainer.tasks[0]), Conversation)


def test_greedy_evaluation_plays_conversations_too(trainer):
    task = trainer.tasks[0]
    runs = [trainer.engine.rollout([Episode(task, Talk(steps=20))], Decoding(0.0))[0] for _ in range(2)]
    assert runs[0].completion_ids == runs[1].completion_ids
    assert "user" in {message["role"] for message in runs[0].messages}


def test_a_trace_with_replies_reads_as_the_conversation_it_is(trainer):
    """The user's later words are observations among the expert's turns, in either rendering of h*."""
    task = trainer.tasks[0]
    step = TraceTurn((Chunk("tool_selection", "I look.\n"),), ({"name": "look", "arguments": {}},), ("seen",))
    said = TraceTurn((Chunk("decision_summary", "That is done."),), (), (), reply="And now?")
    trace = ExpertTrace(task.id, (step, said, step), "Done.", "mined")
    tokens = tokenize_trace(trainer.chat, task, trace, with_answer=True)
    tokenizer = trainer.processing_class

    def text(*kinds):
        return tokenizer.decode([i for i, c in zip(tokens.ids, tokens.component, strict=True) if c in kinds])

    assert "And now?" in text(Component.OBSERVATION) and "seen" in text(Component.OBSERVATION)
    assert "That is done." in text(Component.REASONING) and "And now?" not in text(Component.REASONING)
    assert set(tokens.turn) == {0, 1, 2, 3}
    played = [message for turn in trace.turns for message in turn_messages(turn, "think")]
    assert [m["role"] for m in played] == ["assistant", "tool", "assistant", "user", "assistant", "tool"]
    assert played[2] == {"role": "assistant", "content": "That is done."}, (
        "what is said to the user is no hidden thought"
    )
    assert "User: And now?" in trace_text(trace)
    assert trace.without(("reasoning",)).turns[1].reply == "And now?"


def test_a_bench_without_tools_is_played_by_the_same_loop(tmp_path):
    """The user speaks again, and a block that the template opened belongs to the reply."""
    keys = ("trainer.prompts_per_batch=2", "trainer.minibatch_prompts=2")
    keys = (*keys, "rollout.max_turns=3", "rollout.max_completion_tokens=100")
    config = composed("algo=hipo", *keys, "bench.train_tasks=4", "algo.kl_coef=0")
    trainer = make_trainer(config, tmp_path)
    template = trainer.processing_class.chat_template + "{% if add_generation_prompt %}<think>\n{% endif %}"
    chat = replace(trainer.chat, template=template)

    def speak(request, turn):
        return [*chat.ids("sure ant"), trainer.processing_class.eos_token_id]

    engine = TokenEngine(Scripted(trainer.engine.sampler, speak), chat, config)
    (played,) = engine.rollout([Episode(trainer.tasks[0], Talk(later=["And then?"]))])
    assert [(message["role"], message["content"]) for message in played.messages] == [
        ("assistant", "<think>sure ant"),
        ("user", "And then?"),
        ("assistant", "<think>sure ant"),
    ]
    own = [i for i, own in zip(played.completion_ids, played.policy_mask, strict=True) if own]
    assert own == speak(None, 0) * 2 and not played.truncated
