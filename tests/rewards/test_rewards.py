"""The baselines' rewards: arithmetic by hand, episodes, and the official code's verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.benches.execution import ToolEnvironment, plain_text
from agentrl.benches.ftrl_rows import load_rows
from agentrl.benches.minihop import MinihopBench
from agentrl.chat.transcripts import parse_text
from agentrl.config.schema import ToolRl
from agentrl.core.bench import Bench, Task, has_own_reward
from agentrl.core.errors import UserError
from agentrl.core.trajectory import ToolCall, Trajectory
from agentrl.rewards.ftrl import VARIANTS, calls_reward, text_reward
from agentrl.rewards.matching import similarity, transport_rewards
from agentrl.rewards.toolrl import correctness, multiset_jaccard, reward_bounds
from agentrl.rewards.turns import episode_rewards, turn_rewards
from agentrl.rewards.verdicts import solves
from agentrl.sandbox import Sandbox
from tests.rewards.test_matching import TRACE, call, config, episode
from tests.support.helpers import composed
from tests.support.matchtir_text import (
    closed_calls,
    text_answer_f1,
    text_toolrl,
    text_turn_rewards,
    without_end_markers,
)
from tests.support.toolrl_text import score_response


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# -- the bench's own reward --------------------------------------------------------------------------------------------


class Rewarding(Bench):
    """Gives what it was made with."""

    name, solve_metric = "rewarding", ""

    def __init__(self, given: Any) -> None:
        self.given = given

    def reward(self, task: Task, trajectory: Trajectory) -> Any:
        return self.given


def test_a_bench_rewards_an_episode_or_leaves_it_to_the_configuration() -> None:
    task, rollout = Task("t", [], [], "Paris", "c"), episode([("f", {"a": 1})], "Paris")

    def earned(given: Any, played: Trajectory = rollout) -> list[float]:
        return episode_rewards(Rewarding(given), task, played, config("answer"))

    assert earned(None) == turn_rewards(rollout, [], "Paris", config("answer")) == [0.0, 1.0]
    assert earned(0.25) == [0.0, 0.25]  # the last turn earns the number
    assert earned(True) == [0.0, 1.0] and earned(0) == [0.0, 0.0]
    assert earned([0.5, 1]) == [0.5, 1.0]
    assert earned(0.25, episode()) == []  # nobody is left to earn it
    for wrong in ([1.0], [1.0] * 3, {"user": 1.0, "sys": 1.0}):
        with pytest.raises(UserError, match=r"bench=rewarding: reward gave \d numbers for the 2 turns of t; give one"):
            earned(wrong)


def test_defaults_of_the_contract() -> None:
    bench = Rewarding(None)
    bench.tasks = lambda split: ["a task"] * {"train": 3, "test": 2}[split]  # type: ignore[method-assign, assignment, misc]
    assert (bench.size("train"), bench.size("test")) == (3, 2)
    assert bench.expert_trace(Task("t", [], [], "", "c")) is None
    assert has_own_reward(bench) and not has_own_reward(MinihopBench(composed().bench))


# -- optimal transport -----------------------------------------------------------------------------------------------


def test_transport_by_hand() -> None:
    gold = [call("f", {"a": 1}), call("g", {})]
    # one prediction carries everything: half to each reference, similarity 1 to f and 0 to g
    assert transport_rewards([gold[0]], gold) == pytest.approx([0.5])
    # two equal predictions against one reference: half each of similarity 2/3
    assert transport_rewards([call("f", {"a": 2})] * 2, gold[:1]) == pytest.approx([1 / 3, 1 / 3])
    # the 2x2 plan of marginals 1/2 is symmetric: t on the diagonal with t / (1/2 - t) = exp(1 / reg)
    odds = np.exp(1 / 0.5)
    diagonal = 0.5 * odds / (1 + odds)
    assert transport_rewards(gold, gold, reg=0.5) == pytest.approx([diagonal, diagonal])
    assert transport_rewards([], gold) == [] and transport_rewards(gold, []) == [0.0, 0.0]
    with pytest.raises(ValueError, match="above 0"):
        transport_rewards(gold, gold, reg=0.0)


def test_transport_is_permuted_with_its_calls_and_bounded() -> None:
    gold = [call("f", {"a": 1, "b": 2}), call("f", {"a": 1}), call("g", {"c": 3})]
    pred = [call("g", {"c": 4}), call("f", {"a": 1}), call("f", {"b": 2}), call("h", {})]
    straight = transport_rewards(pred, gold)
    assert transport_rewards(pred[::-1], gold[::-1])[::-1] == pytest.approx(straight)
    assert straight[3] == 0 and 0 < sum(straight) <= 1
    # a tiny regularisation approaches the best transport: rows of 1/4, columns of 1/3
    sharp = transport_rewards(pred, gold, reg=0.01)
    assert max(similarity(pred[1], g) for g in gold) / 4 == pytest.approx(sharp[1], abs=1e-3)


# -- FTRL ------------------------------------------------------------------------------------------------------------


def test_ftrl_by_hand() -> None:
    # 2 of 3 calls solve: 2*2/(3+1), 2*2/3, 2, 2/3
    assert [calls_reward(2, 3, variant) for variant in VARIANTS] == pytest.approx([1, 4 / 3, 2, 2 / 3])
    assert calls_reward(3, 3) == 1.5
    assert text_reward("", "x", 2, 0) == -0.5 and text_reward("a </tool_call>", "a", 2, 0) == -0.3
    assert text_reward("It is 1,200.", "1200", 3, 0) == 0.25 and text_reward("no", "1200", 0, 1) == 0.5
    assert text_reward("no", "1200", 1, 0.5) == 0 and text_reward("<tool_parsed_response>", "x", 0, 1) == -0.3
    assert without_end_markers(" a<|im_end|>\n<|endoftext|> ") == "a"
    assert without_end_markers("a<|endoftext|><|im_end|>") == "a<|endoftext|>"  # each once, in one order


def made(turn: int, name: str, observation: str) -> ToolCall:
    return ToolCall(turn, name, {}, observation)


def test_ftrl_over_an_episode() -> None:
    golds = {"f": ["a1", "b2"], "g": ["c3"]}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [{}, {}]},
        {"role": "tool", "content": "a1"},
        {"role": "tool", "content": "a1"},
        {"role": "assistant", "content": "", "tool_calls": [{}]},
        {"role": "tool", "content": "b2"},
        {"role": "assistant", "content": "the answer is C3"},
    ]
    calls = [made(0, "f", "a1"), made(0, "f", "a1"), made(1, "f", "b2")]
    rollout = Trajectory("t", [], [], [], [], [], messages, calls)
    # 2*1/(2+1); 2*1/(1+1); one of three is open: 1/(1+1)
    assert turn_rewards(rollout, [], "c3", config("ftrl"), golds) == pytest.approx([2 / 3, 1, 1 / 2])
    assert turn_rewards(rollout, [], "c3", config("ftrl", variant="rate"), golds) == [1, 1, 0.5]
    assert turn_rewards(rollout, [], "zz", config("ftrl"), golds)[2] == 0
    assert golds == {"f": ["a1", "b2"], "g": ["c3"]}
    cut = Trajectory("t", [], [], [], [], [], [{"role": "assistant", "content": "", "tool_calls": [{}]}])
    assert turn_rewards(cut, [], "c3", config("ftrl"), golds) == [0]
    thought = Trajectory("t", [], [], [], [], [], [{"role": "assistant", "content": "", "reasoning_content": "hm"}])
    assert turn_rewards(thought, [], "c3", config("ftrl"), {"f": []}) == [0]  # a thought is no empty turn


def test_every_recorded_step_reward(shared: Path) -> None:
    rows = load_rows(shared / "data/ftrl/test.jsonl")
    with Sandbox() as sandbox:
        for record in lines(shared / "parity/ftrl_step_reward.jsonl"):
            row, official = rows[record["row"]], record["official"]
            gone = {(name, index) for name, index in record["solved_before"]}
            remaining = {
                name: [gold for index, gold in enumerate(golds) if (name, index) not in gone]
                for name, golds in row.golds.items()
            }
            unsolved = sum(map(len, remaining.values()))
            content, calls = parse_text(without_end_markers(record["response"]))
            environment = ToolEnvironment(row.sources, plain_text, sandbox)
            solved = sum(solves(environment.call(name, given, 0), remaining) for name, given in calls)
            assert (solved, unsolved) == (official["newly_solved"], official["unsolved_before"]), record["case"]
            for variant in VARIANTS:
                text = text_reward(content, row.answer, unsolved, record["solve_rate"])
                reward = calls_reward(solved, len(calls), variant) if calls else text
                assert reward == pytest.approx(official[variant], abs=1e-12), record["case"]


# -- ToolRL ----------------------------------------------------------------------------------------------------------


def wanted(name: str, **parameters: Any) -> dict[str, Any]:
    return {"name": name, "parameters": parameters}


def test_toolrl_correctness_by_hand() -> None:
    gold = [wanted("f", a=1, b=2)]
    assert correctness(gold, gold, (-3, 3)) == 3 and correctness(list(gold), gold, (-1, 1)) == 1
    # names 1; parameter names 2/3, one value equal: S = 1 + 2/3 + 1, S_max = 1 + 1 + 2
    assert correctness([wanted("f", a=1, b=3, c=4)], gold, (-3, 3)) == pytest.approx(6 * (8 / 3) / 4 - 3)
    assert correctness([wanted("g")], gold, (-3, 3)) == -3
    # names 1/2; the right call is taken once
    assert correctness([*gold, *gold], gold, (-3, 3)) == pytest.approx(6 * (1 / 2 + 1 + 2) / 4 - 3)
    for broken in ([3], [{"name": "f"}], [{"name": "f", "parameters": [1]}], [{"parameters": {}}], 3):
        assert correctness(broken, gold, (-3, 3)) == -3
    assert multiset_jaccard("aab", "ab") == 2 / 3 and multiset_jaccard([], []) == 1 and multiset_jaccard([], "a") == 0


def switches(correct_max1: bool = False, with_length: bool = False, schedule: Any = "none") -> ToolRl:
    return ToolRl(correct_max1=correct_max1, with_length=with_length, schedule=schedule)


def test_toolrl_schedules() -> None:
    none, smooth, staged = (switches(schedule=schedule) for schedule in ("none", "smooth", "two_stage"))
    assert reward_bounds(none, 99) == ((0, 1), (-3, 3)) and reward_bounds(switches(correct_max1=True), 0) == (
        (0, 1),
        (-1, 1),
    )
    assert reward_bounds(smooth, 0) == ((-2, 2), (-2, 2)) and reward_bounds(smooth, 300) == ((-1, 1), (-3, 3))
    assert reward_bounds(staged, 29) == ((0, 1), (-1, 1)) and reward_bounds(staged, 30) == ((0, 0.5), (-3, 3))


def test_toolrl_over_an_episode() -> None:
    calls: list[tuple[str, Any]] = [("f", {"a": 1}), ("g", {})]
    assert turn_rewards(episode(calls, "Paris"), TRACE.calls, "x", config("toolrl")) == [0, 4]  # format 1, exact 3
    # ends on a call: no format. g alone: names 1/2, its own parameters match (1): S = 3/2, S_max = 1 + 2 + 1
    assert turn_rewards(episode([calls[1]]), TRACE.calls, "x", config("toolrl")) == pytest.approx([6 * 1.5 / 4 - 3])
    assert turn_rewards(episode("Paris"), TRACE.calls, "x", config("toolrl")) == [1 - 3]
    assert turn_rewards(episode("<tool_call> Paris"), TRACE.calls, "x", config("toolrl")) == [-3]
    assert turn_rewards(episode("why", "Paris"), TRACE.calls, "x", config("toolrl")) == [0, -3]  # a turn without a call
    assert turn_rewards(episode("Paris"), [], "x", config("toolrl")) == [1]  # no reference: format alone
    assert turn_rewards(episode(), TRACE.calls, "x", config("toolrl")) == []
    thought = [{"role": "assistant", "content": "Paris", "reasoning_content": "word " * 256}]
    rollout = Trajectory("t", [], [], [], [], [], thought)
    assert turn_rewards(rollout, [], "x", config("toolrl", with_length=True)) == [1.5]
    assert turn_rewards(rollout, [], "x", config("toolrl", schedule="two_stage"), step=30) == [0.5]


SCHEDULES = {"SCHEDULEREWARD": "smooth", "MAX1STEP30MAX3": "two_stage"}


def test_every_recorded_toolrl_reward(shared: Path) -> None:
    for record in lines(shared / "parity/toolrl_reward.jsonl"):
        env = record["env"]
        schedule = next((value for key, value in SCHEDULES.items() if env.get(key) == "1"), "none")
        chosen = switches(env.get("CORRECTMAX1") == "1", env.get("WITHLENGTH") == "1", schedule)
        score = score_response(record["response"], record["ground_truth"], chosen, record["step"])
        assert score == pytest.approx(record["official"], abs=1e-12), record["case"]


# -- MatchTIR on raw text --------------------------------------------------------------------------------------------


def test_closed_calls() -> None:
    good = '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>'
    assert closed_calls(f"{good} between {good}") == [call("f", {})] * 2  # unlike FTRL's parser
    for dropped in ('{"name": "f"}', '{"arguments": {}}', "[]", "{", '{"name": "f", "arguments": null}'):
        assert closed_calls(f"<tool_call>{dropped}</tool_call>") == []
    assert closed_calls(good.removesuffix("</tool_call>")) == []


def test_every_recorded_matchtir_reward(shared: Path) -> None:
    for record in lines(shared / "parity/matchtir_reward.jsonl"):
        gold = [call(reference["name"], reference["parameters"]) for reference in record["gold_calls"]]
        response, official = record["response"], record["official"]
        rewards = text_turn_rewards(response, gold, record["answer"])
        if "error" in official:  # arguments that are no object: a crash there, no arguments here
            assert all(0 <= reward <= 1 for reward in rewards)
            continue
        assert rewards == pytest.approx(official["turn_rewards"], abs=1e-12), record["case"]
        f1, toolrl = text_answer_f1(response, record["answer"]), text_toolrl(response, gold)
        assert f1 == pytest.approx(official["answer_f1_whole_response"], abs=1e-12), record["case"]
        assert toolrl == pytest.approx(official["toolrl_variant"], abs=1e-12), record["case"]
