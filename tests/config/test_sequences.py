"""What methods read for a prompt, counted by hand and by the prefix tree that updates use."""

from __future__ import annotations

import itertools

import pytest

from agentrl.config.sequences import Lengths, Tree, count_tokens
from agentrl.scoring.trie import Trie
from tests.support.helpers import composed

LENGTHS = Lengths(prompt=100, completion=40, sampled=30, trace=60, rollouts=8)


def tokens(*keys: str, packed: bool = True) -> float:
    return count_tokens(composed(*keys).algo.update_trees(LENGTHS), packed)


def test_grpo_by_hand() -> None:
    assert tokens("algo=grpo") == 100 + 8 * 40
    assert tokens("algo=grpo", packed=False) == 8 * 140
    # each rollout: 40 tokens see the prompt, and half of the rollout; the prompt sees half of itself
    (tree,) = composed("algo=grpo").algo.update_trees(LENGTHS)
    assert tree.pairs() == 100**2 / 2 + 8 * (40 * 100 + 40**2 / 2)
    assert tree.pairs(packed=False) == 8 * 140**2 / 2
    assert tree.scored_tokens == 8 * 30


def test_pact_by_hand() -> None:
    # q = 0.4: 40% of the prompts are x and their rollouts; the others [x; h*], their rollouts, and h* after x
    anchored, free = 100 + 320, 100 + 60 + 320 + 60
    assert tokens("algo=pact") == pytest.approx(0.4 * anchored + 0.6 * free)
    assert tokens("algo=pact", packed=False) == pytest.approx(0.4 * 8 * 140 + 0.6 * (8 * 200 + 160))
    assert tokens("algo=pact", "algo.q=1") == 420
    assert tokens("algo=pact", "algo.sft_coef=0") == pytest.approx(0.4 * anchored + 0.6 * (free - 60))
    assert tokens("algo=pact", "algo.condition_on_trace=false") == pytest.approx(420 + 0.6 * 60)
    assert tokens("algo=pact", "algo.rl_coef=0") == pytest.approx(0.6 * 160)  # the trace alone, after its prompt
    under_x = ("algo=pact", "algo.kl_context=prompt", "algo.kl_coef=0.1")
    assert tokens(*under_x) == pytest.approx(tokens("algo=pact") + 0.6 * 320)


def test_other_methods_by_hand() -> None:
    assert tokens("algo=chord") == tokens("algo=luffy") == 420 + 60
    assert tokens("algo=opsd") == 420 and tokens("algo=sft") == 160 and tokens("algo=dpo") == 100 + 2 * 40
    assert tokens("algo=srft") == 420 + 60
    hints = ("algo=hint_grpo", "algo.hint_tokens=40")  # every group sampled again, after 40 of 60 tokens of its trace
    assert tokens(*hints, "algo.hint_start=1") == 420 + 40 and tokens(*hints, "algo.hint_start=0.5") == 420 + 30
    assert composed("algo=eval").algo.old_trees(LENGTHS) == []
    old = composed("algo=opsd").algo.old_trees(LENGTHS)
    assert count_tokens(old, True) == 420 + 480  # the policy after x, and as teacher after [x; h*]
    assert count_tokens(composed("algo=rlsd").algo.old_trees(LENGTHS), True) == 2 * 420 + 480
    assert count_tokens(composed("algo=pact").algo.reference_trees(LENGTHS), True) == pytest.approx(420 + 0.6 * 480)


@pytest.mark.parametrize("keys", [("algo=grpo",), ("algo=pact", "algo.q=0"), ("algo=chord",)])
def test_the_prefix_tree_of_an_update_has_as_many_tokens(keys: tuple[str, ...]) -> None:
    """Sequences with new ids in each part, put into the tree that the packed engine makes."""
    fresh = itertools.count()
    prompt, trace, after = ([next(fresh) for _ in range(size)] for size in (100, 60, 60))
    context = prompt + trace if keys[0] == "algo=pact" else prompt
    rows = [context + [next(fresh) for _ in range(40)] for _ in range(8)]
    tree = Trie()
    for row in rows + ([prompt + after] if keys[0] != "algo=grpo" else []):
        tree.add(row)
    assert tree.tokens == tokens(*keys)


def test_a_context_that_is_computed_again_is_counted_again() -> None:
    tree = Tree(100, 8, 40, 30, repeats=2)
    assert tree.packed == 200 + 320
    assert tree.pairs() == 2 * 100**2 / 2 + 8 * (40 * 100 + 40**2 / 2)
