"""Answers: extraction, token F1 by hand, and MatchTIR's verdicts."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.rewards.answers import extract_answer, has_tag, token_f1

SHARED = Path(os.environ.get("AGENTRL_SHARED") or Path(__file__).parents[3] / "shared")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> Paris </answer>", "Paris"),
        ("first <answer>a</answer>, no: <answer>b\nc</answer>.", "b\nc"),
        (" Paris ", "Paris"),
        ("<answer></answer>", ""),
        ("<answer>Paris", "<answer>Paris"),
        ("<think>maybe <answer>Rome</answer></think>\n\nParis", "Paris"),
        ("<think>maybe Paris", ""),
        ("\n<think>maybe <answer>Paris</answer>", ""),
        ("the tag <think> is text here", "the tag <think> is text here"),
        ("", ""),
    ],
)
def test_extract_answer(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


def test_a_tag_inside_a_thought_is_no_answers() -> None:
    assert has_tag("<think>no</think><answer>Paris</answer>")
    assert not has_tag("<think><answer>Paris</answer></think>Paris") and not has_tag("<think><answer>Paris</answer>")


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("Paris", "paris", 1.0),
        ("Paris, France", "Paris", 2 / 3),  # 1 common of 2 and 1: 2 * 1 / 3
        ("Kyiv's", "Kyiv's Old Town", 2 / 3),  # {kyiv, s} of {kyiv, s, old, town}: 2 * 2 / 6
        ("1861", "1,861", 0.0),  # one word against two
        ("the the the", "the", 1.0),  # sets
        ("", "", 0.0),
        ("...", "...", 0.0),
        ("Rome", "Paris", 0.0),
    ],
)
def test_token_f1_by_hand(prediction: str, reference: str, expected: float) -> None:
    assert token_f1(prediction, reference) == pytest.approx(expected)


@given(st.text(max_size=30), st.text(max_size=30))
def test_token_f1_is_a_symmetric_share(a: str, b: str) -> None:
    assert 0 <= token_f1(a, b) <= 1
    assert token_f1(a, b) == token_f1(b, a)
    assert token_f1(a, a) in (0.0, 1.0)


def test_parity_with_matchtir() -> None:
    path = SHARED / "parity" / "matchtir_reward.jsonl"
    if not path.exists():
        pytest.skip(f"no parity data at {path}; set AGENTRL_SHARED")
    cases = 0
    for case in map(json.loads, path.read_text().splitlines()):
        if "error" in case["official"]:
            continue
        # MatchTIR scores the first tag of the whole response, and nothing without a tag; the F1 itself is shared.
        found = re.search(r"<answer>(.*?)</answer>", case["response"], re.DOTALL)
        score = token_f1(found[1], case["answer"]) if found else 0.0
        assert score == pytest.approx(case["official"]["answer_f1_whole_response"], abs=1e-12), case["case"]
        cases += 1
    assert cases > 150
