"""One reward per assistant turn: tool turns earn their calls' matches, the final turn its answer (PACT, App. B)."""

from __future__ import annotations

from collections.abc import Iterator

from agentrl.config import schema
from agentrl.rewards.answers import extract_answer, token_f1
from agentrl.rewards.matching import call_rewards
from agentrl.traces.records import ExpertTrace
from agentrl.trajectory import Trajectory

KINDS = ("matching", "answer")


def turn_rewards(trajectory: Trajectory, trace: ExpertTrace | None, answer: str, config: schema.Reward) -> list[float]:
    """r_t for every assistant turn of one rollout; length `trajectory.num_turns`.

    matching: a turn with calls earns their mean, after one-to-one matching of ALL executed calls of the rollout with
    ALL calls of the trace (so repeating a call earns nothing new); without a trace every call is unmatched.
    Either kind: a last turn without calls earns the token F1 of its answer; any other turn without calls earns 0.
    answer: turns with calls earn 0.
    Raises ValueError on another kind of reward.
    """
    if config.name not in KINDS:
        raise ValueError(f"unknown reward {config.name!r}; choose from {', '.join(KINDS)}")
    calls = trajectory.calls_by_turn()
    rewards = [0.0] * len(calls)
    if config.name == "matching":
        flat = [{"name": call.name, "arguments": call.arguments} for turn in calls for call in turn]
        gold = trace.calls if trace is not None else []
        earned: Iterator[float] = iter(call_rewards(flat, gold, config.matching, config.unmatched_penalty))
        rewards = [sum(next(earned) for _ in turn) / len(turn) if turn else 0.0 for turn in calls]
    unexecuted = bool(trajectory.messages) and bool(trajectory.messages[-1].get("tool_calls"))
    if calls and not calls[-1] and not unexecuted:  # text beside a call that came too late is no answer
        rewards[-1] = token_f1(extract_answer(trajectory.final_text), answer)
    return rewards
