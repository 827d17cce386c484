"""Rotary frequencies that change with the length (`longrope`): those of a sequence alone, whatever shares its pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agentrl.scoring.packed import PackedEngine
from agentrl.scoring.padded import PaddedEngine
from agentrl.scoring.rotary import longest_short
from agentrl.scoring.sequence import Sequence
from tests.scoring.test_engines import assert_equal, drawn, gradients, packed
from tests.support.networks import network

SHORT = 60  # some of the drawn sequences are longer


def moving(family: str) -> Any:
    """A network with two sets of frequencies, as Phi-3 has them."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 1.5]}
    lengths = {"original_max_position_embeddings": SHORT}
    return network(family, rope_parameters=rope | lengths, **lengths)


def alone(model: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Scores of every sequence in a forward pass of its own, and the gradients of them all."""

    class Alone(PaddedEngine):
        def score(self, model: Any, sequences: Any, router: bool = False) -> Any:
            scores = [PaddedEngine.score(self, model, [one]) for one in sequences]
            whole = scores[0]
            for one in scores[1:]:
                whole.logps.extend(one.logps)
                whole.entropies.extend(one.entropies)
            return whole

    return gradients(Alone(), model, [one for one in drawn() if one.scored])


@pytest.mark.parametrize("family", ["phi3", "llama"])
def test_a_sequence_has_the_frequencies_of_its_own_length(family: str) -> None:
    model = moving(family)
    assert longest_short(model) == SHORT
    sequences = [one for one in drawn() if one.scored]
    assert 0 < sum(len(one.ids) > SHORT for one in sequences) < len(sequences)
    expected = alone(model)
    assert_equal(gradients(PaddedEngine(), model, sequences), expected)
    engine = packed(model)
    for _ in range(2):  # a pass leaves no frequencies behind
        assert_equal(gradients(engine, model, sequences), expected)
    assert_equal(alone(model), expected)


def test_long_sequences_share_no_places_with_short_ones() -> None:
    one_set, two_sets = PackedEngine(), PackedEngine()
    one_set.prepare(network("phi3"))
    two_sets.prepare(moving("phi3"))
    long = max(drawn(), key=lambda one: len(one.ids))
    short = Sequence(long.ids[:SHORT], [SHORT - 1])
    assert one_set.cost([long, short]) == len(long.ids)
    assert two_sets.cost([long, short]) == len(long.ids) + len(short.ids)
    assert two_sets.cost([long, long]) == len(long.ids)
    assert len(two_sets.cut([[long], [short]], len(long.ids))) == 2
