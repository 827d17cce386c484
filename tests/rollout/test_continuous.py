"""One running batch computes every token once, and says what transformers' `generate` says, item by item."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl.core.engine import Decoding, Episode
from agentrl.core.trajectory import Trajectory
from agentrl.models.adapters import lora_config
from agentrl.models.loading import load_chat, load_model, needs_of
from agentrl.rollout import continuous, transformers_sampler
from agentrl.rollout.drawing import Draw
from agentrl.rollout.key_values import Cached, Shelf
from agentrl.rollout.prefixes import common_length
from agentrl.rollout.sampler import Request, Stop
from agentrl.rollout.tokens import TokenEngine, local_engine
from tests.support.helpers import changed, composed, make_trainer, small

GREEDY = Decoding(0.0)


@pytest.fixture(scope="module")
def parts() -> Any:
    """Configuration, bench, tasks of several turns, chat and trained network of the packaged model."""
    from agentrl.benches import load_bench

    config = composed("algo=grpo", "bench.train_tasks=12", "rollout.max_turns=5", "rollout.max_completion_tokens=300")
    bench = load_bench(config.bench)
    tasks = bench.tasks("train")
    chat = load_chat(config.model, needs_of(tasks))
    return config, bench, tasks, chat, load_model(config.model)


@pytest.fixture
def computed(parts: Any) -> Iterator[list[int]]:
    """Tokens of each forward pass of the model."""
    tokens: list[int] = []
    hook = parts[4].register_forward_pre_hook(
        lambda _, args, inputs: tokens.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    yield tokens
    hook.remove()


def engine(parts: Any, **limits: Any) -> TokenEngine:
    """By default so warm that rollouts differ: the packaged model is sure of most tokens."""
    config, _, _, chat, model = parts
    limits = {"temperature": 1.3, **limits}
    return local_engine(changed(config, rollout=changed(config.rollout, **limits)), chat, model)


def play(parts: Any, engine: TokenEngine, tasks: Any, decoding: Decoding | None, seed: int = 3) -> list[Trajectory]:
    torch.manual_seed(seed)
    return engine.rollout([Episode(task, parts[1].environment(task)) for task in tasks], decoding)


def distinct_tokens(played: list[Trajectory]) -> int:
    """Tokens of the prompts, each once, and of all completions."""
    return sum(map(len, {tuple(one.prompt_ids) for one in played})) + sum(len(one.completion_ids) for one in played)


def by_generate(parts: Any, tasks: Any, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> list[Trajectory]:
    """Greedy trajectories as the padded batches of transformers give them."""
    with monkeypatch.context() as patch:
        patch.setattr(transformers_sampler, "why_unsupported", lambda model: "the reference is wanted")
        patch.setattr(transformers_sampler.warnings, "warn", lambda *_, **__: None)
        return play(parts, engine(parts, **limits), tasks, GREEDY)


def test_greedy_turns_are_those_of_generate_item_by_item(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [task for task in parts[2][:6] for _ in range(2)]
    wanted = by_generate(parts, tasks, monkeypatch)
    assert play(parts, engine(parts), tasks, GREEDY) == wanted
    assert len({one.num_turns for one in wanted}) > 1 and any(one.calls for one in wanted)


def test_limits_of_a_turn_are_those_of_generate(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"max_completion_tokens": 70, "max_turn_tokens": 20}
    wanted = by_generate(parts, parts[2][:4], monkeypatch, **limits)
    assert play(parts, engine(parts, **limits), parts[2][:4], GREEDY) == wanted
    assert any(one.truncated for one in wanted)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of every forward pass: the tokens that the cache has room for, and the rows that are sampled."""
    seen = []
    forward = continuous.forward

    def watched(model: Any, rows: Any, trunks: Any, pieces: Any, prompts: Any) -> Any:
        seen.append((rows.rows * rows.width + trunks.rows * trunks.width, len(pieces)))
        return forward(model, rows, trunks, pieces, prompts)

    monkeypatch.setattr(continuous, "forward", watched)
    return seen


@pytest.mark.parametrize("budget", [pytest.param(1, marks=pytest.mark.slow), 300])
def test_what_is_sampled_does_not_depend_on_the_budget_of_the_cache(parts: Any, passes: Any, budget: int) -> None:
    tasks = [task for task in parts[2][:2] for _ in range(2)]
    short = {"max_completion_tokens": 90, "max_turn_tokens": 32}
    tight, wide = engine(parts, cache_tokens=budget, **short), engine(parts, **short)
    for decoding in (GREEDY, None):
        passes.clear()
        played = play(parts, tight, tasks, decoding)
        assert max(rows for _, rows in passes) < len(tasks), "the budget was no budget"
        assert [one.completion_ids for one in played] == [
            one.completion_ids for one in play(parts, wide, tasks, decoding)
        ]


@pytest.mark.parametrize("ahead", [256, 1])
def test_the_cache_stays_within_its_budget(
    parts: Any, passes: Any, computed: list[int], ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that enter without room for their turn grow beyond the budget: some are given up and computed again."""
    tasks = [task for task in parts[2][:6] for _ in range(2)]
    whole = engine(parts, max_completion_tokens=90)
    wanted = play(parts, whole, tasks, None)
    once = sum(computed)
    passes.clear()
    computed.clear()
    monkeypatch.setattr(continuous, "AHEAD", ahead)
    tight = engine(parts, cache_tokens=1200, max_completion_tokens=90)
    played = play(parts, tight, tasks, None)
    assert [one.completion_ids for one in played] == [one.completion_ids for one in wanted]
    assert 600 < max(tokens for tokens, _ in passes) <= 1200
    assert 2 < max(rows for _, rows in passes) < len(tasks) or ahead == 1
    assert ahead > 1 or sum(computed) > once, "no row was given up"


def test_what_lost_its_cache_is_computed_again(parts: Any, computed: list[int]) -> None:
    _, _, tasks, chat, _ = parts
    prompts = [chat.prompt_ids(task.prompt, task.tools) for task in tasks[:2]]
    turns = []
    for budget in (1, None):
        sampler = engine(parts, cache_tokens=budget).sampler
        with sampler.session(GREEDY) as session:
            (first,) = session.sample([Request(0, prompts[0], 4)]).values()
            session.sample([Request(1, prompts[1], 4)])
            computed.clear()
            (turn,) = session.sample([Request(0, prompts[0] + first.ids, 4)]).values()
        turns.append((turn.ids, sum(computed)))
    assert turns == [(turn.ids, len(prompts[0]) + 4 + 3), (turn.ids, 1 + 3)]


def test_every_token_is_computed_once(parts: Any, computed: list[int]) -> None:
    tasks = [task for task in parts[2][:4] for _ in range(4)]
    one = engine(parts)
    played = play(parts, one, tasks, None)
    assert len({tuple(p.completion_ids) for p in played}) > 4 and sum(len(p.calls) for p in played) > 8
    # Each rollout reads the last token of its prompt itself; the last token that it says is never read.
    bound = distinct_tokens(played) + len(tasks)
    assert bound - 2 * len(tasks) <= sum(computed) <= bound
    padded = sum(len(p.prompt_ids) + len(p.completion_ids) for p in played)
    assert sum(computed) < 0.7 * padded


@pytest.mark.parametrize("rollouts", [1, 2])
@pytest.mark.parametrize("budget", [None, 1300])
def test_a_beginning_that_prompts_share_is_computed_once(
    parts: Any, computed: list[int], monkeypatch: pytest.MonkeyPatch, rollouts: int, budget: int | None
) -> None:
    """And the turns stay those of `generate`, also where the cache lets go of a prompt that others would copy."""
    talk = " ".join(["Answer with care."] * 40)
    tasks = [
        replace(task, prompt=[{"role": "system", "content": talk}, task.prompt[-1]])
        for task in parts[2][:4]
        for _ in range(rollouts)
    ]
    limits = {"max_completion_tokens": 60, "max_turn_tokens": 24}
    wanted = by_generate(parts, tasks, monkeypatch, **limits)
    assert len({tuple(one.prompt_ids) for one in wanted}) == 4
    computed.clear()
    assert play(parts, engine(parts, cache_tokens=budget, **limits), tasks, GREEDY) == wanted
    prompts = [one.prompt_ids for one in wanted[::rollouts]]
    alike = min(common_length(prompts[0], one) for one in prompts[1:])
    assert alike > 128
    once = sum(map(len, prompts)) - 3 * (alike // 32 * 32) + sum(len(one.completion_ids) for one in wanted)
    if budget is None:
        assert sum(computed) <= once + len(wanted)
    else:
        assert once + len(wanted) < sum(computed) < once + 3 * alike, "some prompts were there, and some had gone"


def test_a_changed_context_is_not_taken_for_the_prompt_that_it_was(parts: Any) -> None:
    """A row that lends the beginning of its prompt lends only what it still begins with."""
    ids = torch.randint(3, 1000, (400,), generator=torch.Generator().manual_seed(1)).tolist()
    first, other = ids[:200], ids[:80] + ids[300:400]
    last = [*first[:190], 7, 9]
    with engine(parts, temperature=1.0).sampler.session(None) as session:
        session.sample([Request(0, first, 2)])
        session.sample([Request(0, other, 2)])
        turn = session.sample([Request(1, last, 8)])[1]
    with torch.no_grad():
        logprobs = parts[4](torch.tensor([last + turn.ids])).logits[0, len(last) - 1 : -1].log_softmax(-1)
    wanted = logprobs.gather(1, torch.tensor(turn.ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(turn.logprobs), wanted, atol=1e-5, rtol=1e-5)


def test_a_row_whose_prompt_nobody_shares_is_sampled_beside_rows_that_share_theirs(parts: Any) -> None:
    """Log-probs of all are those of plain forward passes."""
    ids = torch.randint(3, 1000, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    prompts = [ids[:40], ids[40:], ids[:40]]
    with engine(parts, temperature=1.0).sampler.session(None) as session:
        turns = session.sample([Request(number, prompt, 8) for number, prompt in enumerate(prompts)])
        while len(turns) < len(prompts):
            turns |= session.sample([])
    for number, prompt in enumerate(prompts):
        said = turns[number]
        with torch.no_grad():
            logprobs = parts[4](torch.tensor([prompt + said.ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        wanted = logprobs.gather(1, torch.tensor(said.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(said.logprobs), wanted, atol=1e-5, rtol=1e-5)


def test_log_probs_are_those_of_a_training_forward(parts: Any) -> None:
    model = parts[4]
    for temperature in (1.0, 1.5):
        for one in play(parts, engine(parts, temperature=temperature), parts[2][:3] * 2, None):
            wanted = forwarded(model.train(), one, temperature)
            torch.testing.assert_close(torch.tensor(one.logprobs), wanted, atol=1e-5, rtol=1e-5)


def forwarded(model: Any, played: Trajectory, temperature: float) -> Any:
    """Log-probs (C,) of what the policy wrote, 0 elsewhere, from one plain forward pass."""
    ids = torch.tensor([played.prompt_ids + played.completion_ids])
    with torch.no_grad():
        logprobs = (model(ids).logits[0, :-1] / temperature).log_softmax(-1)
    said = logprobs.gather(-1, ids[0, 1:, None])[len(played.prompt_ids) - 1 :, 0]
    return said * torch.tensor(played.policy_mask)


def test_a_nucleus_is_drawn_as_often_as_its_log_probs_say() -> None:
    probabilities = torch.tensor([[0.15, 0.5, 0.05, 0.3]])
    draw = Draw(Decoding(1.0, 0.8))
    streams = [draw.stream(row, 0) for row in range(2000)]
    tokens, logprobs = draw.tokens(probabilities.log().expand(2000, 4), streams)
    assert logprobs is not None and set(tokens) == {1, 3}
    for token, share in ((1, 0.625), (3, 0.375)):
        assert tokens.count(token) / 2000 == pytest.approx(share, abs=0.04)
        assert {round(value, 5) for value, one in zip(logprobs, tokens, strict=True) if one == token} == {
            round(math.log(share), 5)
        }
    assert Draw(GREEDY).tokens(probabilities, []) == ([1], None)


def test_the_same_seed_gives_the_same_run_and_the_order_of_rows_changes_nothing(parts: Any) -> None:
    tasks = parts[2][:4]
    first, again, other = (
        play(parts, engine(parts, max_completion_tokens=90), tasks, None, seed) for seed in (5, 5, 6)
    )
    assert first == again and first != other
    answers = []
    for order in ([0, 1, 2], [2, 1, 0]):
        requests = [Request(n, parts[3].prompt_ids(task.prompt, task.tools), 30) for n, task in enumerate(tasks[:3])]
        turns: dict[int, Any] = {}
        sampler = engine(parts).sampler
        torch.manual_seed(9)
        with sampler.session(None) as session:
            for number in order:
                turns |= session.sample([requests[number]])
            while len(turns) < 3:
                turns |= session.sample([])
        answers.append([turns[n].ids for n in range(3)])
    assert answers[0] == answers[1] and len(set(map(tuple, answers[0]))) == 3


def test_the_random_numbers_of_a_batch_come_from_one_draw(parts: Any) -> None:
    torch.manual_seed(4)
    play_engine = engine(parts)
    torch.manual_seed(4)
    with play_engine.sampler.session(None):
        pass
    state = torch.get_rng_state()
    torch.manual_seed(4)
    torch.randint(2**62, ())
    assert torch.equal(state, torch.get_rng_state())


def test_rows_enter_while_others_are_sampled_and_a_changed_context_is_read_anew(
    parts: Any, computed: list[int]
) -> None:
    _, _, tasks, chat, _ = parts
    prompts = [chat.prompt_ids(task.prompt, task.tools) for task in tasks[:3]]
    sampler = engine(parts).sampler
    with sampler.session(GREEDY) as session:
        (turn,) = session.sample([Request(0, prompts[0], 5)]).values()
        assert turn.stop is Stop.LIMIT and len(turn.ids) == 5
        longer = prompts[0] + turn.ids
        computed.clear()
        (next_turn,) = session.sample([Request(0, longer, 5)]).values()
        assert sum(computed) == 5  # the last token of the turn before, and four of this one
        other = [*prompts[0][:-4], *prompts[1]]
        computed.clear()
        (changed_turn,) = session.sample([Request(0, other, 5)]).values()
        assert sum(computed) == len(prompts[1]) + 4
        assert session.sample([Request(1, prompts[1], 0)])[1].ids == []
    with sampler.session(GREEDY) as session:
        whole = session.sample([Request(0, prompts[0], 10), Request(1, prompts[2], 20)])
        while len(whole) < 2:
            whole |= session.sample([])
        assert whole[0].ids == turn.ids + next_turn.ids
        assert session.sample([Request(2, other, 5)])[2].ids == changed_turn.ids


def test_a_session_returns_early_when_more_is_to_be_had(parts: Any) -> None:
    _, _, tasks, chat, _ = parts
    with engine(parts).sampler.session(GREEDY) as session:
        request = Request(0, chat.prompt_ids(tasks[0].prompt, tasks[0].tools), 30)
        assert session.sample([request], lambda: True) == {}
        assert len(session.sample([])[0].ids) > 1


def test_a_full_context_ends_a_turn(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, tasks, chat, _ = parts
    prompt = chat.prompt_ids(tasks[0].prompt, tasks[0].tools)
    sampler = engine(parts).sampler
    sampler.context = len(prompt) + 3
    with sampler.session(GREEDY) as session:
        turn = session.sample([Request(0, prompt, 30)])[0]
    assert len(turn.ids) == 3 and turn.stop is Stop.CONTEXT


def test_nan_is_an_error_and_not_a_token(parts: Any) -> None:
    config, _, tasks, chat, _ = parts
    broken = load_model(config.model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="NaN"):
        play(parts, local_engine(config, chat, broken), tasks[:1], None)


def test_what_the_running_batch_cannot_take_is_sampled_by_generate_with_a_word(parts: Any, passes: Any) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config, _, tasks, chat, _ = parts
    windowed = MistralForCausalLM(
        MistralConfig(vocab_size=1073, hidden_size=32, intermediate_size=32, num_hidden_layers=1, sliding_window=16)
    )
    with pytest.warns(UserWarning, match="not every layer attends to the whole context"):
        one = local_engine(changed(config, rollout=changed(config.rollout, max_completion_tokens=8)), chat, windowed)
    (played,) = play(parts, one, tasks[:1], GREEDY)
    assert len(played.completion_ids) > 0 and not passes


@pytest.mark.parametrize("kernel", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"])
def test_families_without_shared_heads_and_with_biases_agree_too(parts: Any, kernel: str) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config, _, tasks, chat, _ = parts
    torch.manual_seed(0)
    family = Qwen2Config(
        vocab_size=1073, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, attn_implementation=kernel, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(family)
    limits = changed(config.rollout, max_completion_tokens=40, max_turn_tokens=20)
    one = local_engine(changed(config, rollout=limits), chat, model)
    for played in play(parts, one, tasks[:2] * 2, None):
        torch.testing.assert_close(torch.tensor(played.logprobs), forwarded(model, played, 1.0), atol=1e-5, rtol=1e-5)
    assert model.config._attn_implementation == kernel


def test_slots_keep_what_they_hold_when_others_leave_or_move() -> None:
    shelf: Shelf[Cached] = Shelf()
    entries = [Cached(list(range(n))) for n in (3, 2, 4, 1)]
    for entry in entries:
        shelf.put(entry)
    shelf.fit(4, 10_000)
    empty = torch.zeros(1, 2, 0, 5)
    for number, entry in enumerate(entries):
        entry.held = len(entry.ids)
        for sign, whole in zip((1, -1), shelf.layer(0, empty, empty), strict=True):
            whole[entry.slot, :, : entry.held] = sign * number
    shelf.bring_forward({entries[2], entries[3]})
    assert {entry.slot for entry in entries[2:]} == {0, 1}
    shelf.drop(entries[3])
    shelf.fit(40, 10_000)
    keys, values = shelf.layer(0, empty, empty)
    read_keys, read_values = shelf.read(0, 3, 32)
    assert torch.equal(read_keys.unflatten(0, (3, 2)).transpose(2, 3), keys[:3, :, :32])
    assert torch.equal(read_values.unflatten(0, (3, 2)), values[:3, :, :32])
    for number, entry in enumerate(entries[:3]):
        assert entry.slot is not None and shelf.entries[entry.slot] is entry
        assert (keys[entry.slot, :, : entry.held] == number).all() and (
            values[entry.slot, :, : entry.held] == -number
        ).all()


@pytest.mark.parametrize(
    "wrapping", ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("checkpointing", "bf16"))]
)
def test_a_trainers_model_is_sampled_as_it_is_trained(tmp_path: Path, passes: Any, wrapping: str) -> None:
    """Adapters count but not their dropout, checkpointing comes back, and autocast holds for sampling too."""
    keys = {
        "lora": ("model/lora=on", "model.lora.dropout=0.5"),
        "checkpointing": ("model.gradient_checkpointing=true",),
        "bf16": ("hardware.bf16=true",),
    }[wrapping]
    config = small("algo=grpo", "rollout.max_completion_tokens=40", *keys)
    trainer = make_trainer(config, tmp_path, peft_config=lora_config(config.model))
    if wrapping == "lora":
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
    if wrapping == "checkpointing":  # which transformers begins with training
        trainer.model.gradient_checkpointing_enable()
    trainer.model.train()
    rows = [{"task": n // 2, "prompt": trainer.tasks[n // 2].prompt} for n in range(4)]
    trainer.num_generations = 2
    batch = trainer._generate_and_score_completions(rows)
    assert "importance_sampling_ratio" not in batch, "the loss would correct for a sampler that is on policy"
    assert passes and trainer.model.training
    assert trainer.model.is_gradient_checkpointing == (wrapping == "checkpointing")
    model = trainer.model.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=wrapping == "bf16"):
        for one in trainer._trajectories:
            tolerance = 0.1 if wrapping == "bf16" else 1e-5
            difference = torch.tensor(one.logprobs) - forwarded(model, one, 1.0).float()
            assert difference.abs().max() < tolerance
