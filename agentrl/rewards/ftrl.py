"""FTRL's step reward (arXiv 2508.08791): it rewards a turn for the sub-answers that its calls solve first."""

from __future__ import annotations

from collections.abc import Callable

VARIANTS: dict[str, Callable[[int, int], float]] = {
    "f1": lambda solved, calls: 2 * solved / (calls + 1),  # the paper's; above 1 if several calls solve
    "pr": lambda solved, calls: solved**2 / calls,
    "rate": lambda solved, calls: float(solved),
    "precision": lambda solved, calls: solved / calls,
}
STRAY_TAGS = ("<tool_call>", "</tool_call>", "<tool_parsed_response>")
EMPTY, STRAY, SOLVED_WITHOUT_ANSWER = -0.5, -0.3, 0.5


def calls_reward(solved: int, calls: int, variant: str = "f1") -> float:
    """Return the reward of a turn with `calls` >= 1 calls, if `solved` of them solved an open sub-answer."""
    return VARIANTS[variant](solved, calls)


def text_reward(content: str, answer: str, unsolved: int, solve_rate: float) -> float:
    """Return the reward of a turn without calls. It is the same in all variants.

    An empty turn earns -0.5, left-over tool tags earn -0.3. A turn that contains the answer (case and commas ignored)
    earns 1 / (1 + unsolved), where `unsolved` counts the sub-answers that are still open. Any other turn earns 0.5 if
    the episode has solved all sub-answers (`solve_rate` 1), else 0.
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
