"""Give one reward to each assistant turn of an episode: the bench's own, or the configured one (docs/rewards.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from agentrl.config import schema
from agentrl.core.bench import Bench, Task, reference_calls
from agentrl.core.errors import UserError
from agentrl.core.trajectory import ToolCall, Trajectory
from agentrl.rewards.answers import extract_answer, has_tag, token_f1
from agentrl.rewards.ftrl import STRAY_TAGS, calls_reward, text_reward
from agentrl.rewards.matching import call_rewards, transport_rewards
from agentrl.rewards.toolrl import correctness, length_reward, reward_bounds
from agentrl.rewards.verdicts import has_whole, solves

COMPARING = ("matching", "ot", "toolrl")  # these rewards compare calls with reference calls
Call = Mapping[str, Any]


def episode_rewards(
    bench: Bench, task: Task, trajectory: Trajectory, config: schema.Reward, step: int = 0
) -> list[float]:
    """Return r_t for every assistant turn: the bench's own reward, or the configured reward if the bench has none.

    `step` is the training step, for ToolRL's schedules.

    Raises:
        UserError: the bench gives neither one number nor one number for each turn.
    """
    own = bench.reward(task, trajectory)
    if own is None:
        references = reference_calls(bench, task) if config.name in COMPARING else []
        return turn_rewards(trajectory, references, task.answer, config, task.golds, step)
    turns = trajectory.num_turns
    if isinstance(own, int | float):
        return [0.0] * (turns - 1) + [float(own)] * min(turns, 1)
    if isinstance(own, Mapping) or len(own) != turns:
        raise UserError(
            f"bench={bench.name}: reward gave {len(own)} numbers for the {turns} turns of {task.id}; give one number, "
            "or one for each turn"
        )
    return [float(value) for value in own]


def turn_rewards(
    trajectory: Trajectory,
    references: Sequence[Call],
    answer: str,
    config: schema.Reward,
    golds: Mapping[str, Sequence[str]] | None = None,
    step: int = 0,
) -> list[float]:
    """Return r_t for every assistant turn of one rollout, by the configured reward; length `trajectory.num_turns`.

    The rewards in COMPARING read `references`, which `agentrl.core.bench.reference_calls` gives. reward=ftrl reads
    `golds`, the sub-answers by tool. `step` is the training step, for ToolRL's schedules.
    """
    if config.name == "ftrl":
        return ftrl_rewards(trajectory, answer, golds or {}, config.ftrl_variant)
    if config.name == "toolrl":
        return toolrl_rewards(trajectory, references, config.toolrl, step)
    return credit_rewards(trajectory, references, answer, config)


def known_calls(references: Sequence[Call], calls: Sequence[ToolCall]) -> list[Call]:
    """Return the references with arguments, and the rollout's calls that stand in for the other references.

    A reference may have only a result. The first call of the rollout that returned it then takes its place, if there is
    one. A call takes the place of one reference only, even if it was repeated.
    """
    known = [reference for reference in references if "result" not in reference]
    for reference in references:
        if "result" not in reference:
            continue
        for call in calls:
            made = {"name": call.name, "arguments": call.arguments}
            returned = call.name == reference["name"] and not call.error
            if returned and made not in known and has_whole(call.observation, reference["result"]):
                known.append(made)
                break
    return known


def credit_rewards(
    trajectory: Trajectory, references: Sequence[Call], answer: str, config: schema.Reward
) -> list[float]:
    """Reward the turns of a rollout by reward=matching, ot or answer.

    matching and ot: a turn with calls earns the mean of its calls' rewards. All executed calls of the rollout are
    compared with all references together, so a repeated call earns nothing new. Without references every call is
    unmatched. answer: a turn with calls earns 0.

    All three: a last turn without calls earns the token F1 of its answer, and any other turn without calls earns 0.
    """
    calls = trajectory.calls_by_turn()
    rewards = [0.0] * len(calls)
    if config.name != "answer":
        flat = [{"name": call.name, "arguments": call.arguments} for turn in calls for call in turn]
        gold = known_calls(references, trajectory.calls)
        earned: Iterator[float] = iter(
            transport_rewards(flat, gold, config.ot_reg)
            if config.name == "ot"
            else call_rewards(flat, gold, config.matching, config.unmatched_penalty)
        )
        rewards = [sum(next(earned) for _ in turn) / len(turn) if turn else 0.0 for turn in calls]
    if calls and not calls[-1] and not _has_calls(_assistant(trajectory)[-1]):  # text beside a call is not an answer
        text = trajectory.final_text
        rewards[-1] = 0.0 if config.answer_tag and not has_tag(text) else token_f1(extract_answer(text), answer)
    return rewards


def ftrl_rewards(trajectory: Trajectory, answer: str, golds: Mapping[str, Sequence[str]], variant: str) -> list[float]:
    """Reward every turn by FTRL's step reward, given what the turns before it have solved.

    A call that the token budget cut off before it ran solves nothing.
    """
    remaining = {name: list(answers) for name, answers in golds.items()}
    total = sum(map(len, remaining.values()))
    rewards = []
    for message, calls in zip(_assistant(trajectory), trajectory.calls_by_turn(), strict=True):
        unsolved = sum(map(len, remaining.values()))
        made = max(len(message.get("tool_calls") or []), len(calls))
        if made:
            rewards.append(calls_reward(sum(solves(call, remaining) for call in calls), made, variant))
        else:
            solve_rate = 1 - unsolved / total if total else 0.0
            rewards.append(text_reward(_text(message).strip(), answer, unsolved, solve_rate))
    return rewards


def toolrl_rewards(
    trajectory: Trajectory, references: Sequence[Call], switches: schema.ToolRl, step: int
) -> list[float]:
    """Reward an episode by ToolRL's rules, which are made for one reply. The last turn earns the reward, other turns 0.

    Format, calls and thought of the whole episode count as those of one reply. The format is right if every turn but
    the last makes calls, the last turn is text, and no tag is left over. The thought is the think block, or the text
    beside the calls of a turn without one.
    """
    messages = _assistant(trajectory)
    if not messages:
        return []
    made = [bool(calls) or _has_calls(m) for m, calls in zip(messages, trajectory.calls_by_turn(), strict=True)]
    formed = all(made[:-1]) and not made[-1] and bool(_text(messages[-1]).strip())
    formed = formed and not any(tag in _text(message) for message in messages for tag in STRAY_TAGS)
    format_bounds, bounds = reward_bounds(switches, step)
    total = format_bounds[formed]
    if references:
        gold = _parameters((call["name"], call["arguments"]) for call in known_calls(references, trajectory.calls))
        pred = _parameters((call.name, call.arguments) for call in trajectory.calls)
        total += correctness(pred, gold, bounds) if pred else bounds[0]
    if switches.with_length:
        thoughts = [_thought(message, calls) for message, calls in zip(messages, made, strict=True)]
        total += length_reward(" ".join(thoughts))
    return [0.0] * (len(messages) - 1) + [total]


def _assistant(trajectory: Trajectory) -> list[dict[str, Any]]:
    return [message for message in trajectory.messages if message["role"] == "assistant"]


def _has_calls(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls"))


def _text(message: Mapping[str, Any]) -> str:
    """Return what the turn says apart from its calls, thought included."""
    return (message.get("reasoning_content") or "") + (message.get("content") or "")


def _thought(message: Mapping[str, Any], calls: bool) -> str:
    """Return the think block, wherever it stands, or else the text beside the calls."""
    content: str = message.get("content") or ""
    if "<think>" in content:
        return content.partition("<think>")[2].partition("</think>")[0]
    return message.get("reasoning_content") or (content if calls else "")


def _parameters(calls: Iterable[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Return the calls in ToolRL's form."""
    return [{"name": name, "parameters": arguments} for name, arguments in calls]
