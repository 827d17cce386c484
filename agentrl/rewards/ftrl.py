"""FTRL's step reward (arXiv 2508.08791): one assistant turn, judged by the sub-answers that its calls newly solve."""

from __future__ import annotations

from collections.abc import Callable

VARIANTS: dict[str, Callable[[int, int], float]] = {
    "f1": lambda solved, calls: 2 * solved / (calls + 1),  # the paper's; above 1 for several solving calls
    "pr": lambda solved, calls: solved**2 / calls,
    "rate": lambda solved, calls: float(solved),
    "precision": lambda solved, calls: solved / calls,
}
STRAY_TAGS = ("<tool_call>", "</tool_call>", "<tool_parsed_response>")
EMPTY, STRAY, SOLVED_WITHOUT_ANSWER = -0.5, -0.3, 0.5


def calls_reward(solved: int, calls: int, variant: str = "f1") -> float:
    """Reward of a turn with `calls` >= 1 calls, of which `solved` solved an open sub-answer."""
    return VARIANTS[variant](solved, calls)


def text_reward(content: str, answer: str, unsolved: int, solve_rate: float) -> float:
    """Reward of a turn without calls, the same in all variants.

    Empty: -0.5. Left-over tool tags: -0.3. The answer is contained, case and commas aside: 1 / (1 + unsolved), where
    `unsolved` counts the sub-answers still open. Otherwise 0.5 if the episode has solved all (`solve_rate` 1), else 0.
    """
    if not content:
        return EMPTY
    if any(tag in content for tag in STRAY_TAGS):
        return STRAY
    if _plain(answer) in _plain(content):
        return 1 / (1 + unsolved)
    return SOLVED_WITHOUT_ANSWER if solve_rate == 1 else 0.0


def _plain(text: str) -> str:
    return text.lower().replace(",", "").strip()
