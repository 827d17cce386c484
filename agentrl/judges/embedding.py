"""A stand-in for a judge of r_user: how similar a sentence encoder finds the reply and the user's request.

It sees whether the two are about the same thing, in whatever words. It does not see whether the reply is right.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.config.judges import EmbeddingJudge
from agentrl.core.errors import UserError
from agentrl.core.judge import JudgeRequest, Verdict
from agentrl.models.encoder import SentenceEncoder, Vectors


class SimilarityJudge:
    """Scores r_user by max(0, cosine of request and reply), in [0, 1], on the CPU.

    A verbatim copy of the whole request is removed first: it would get 1. A reply without other text gets 0.
    """

    def __init__(self, config: EmbeddingJudge):
        self.name = config.path
        self._batch = config.batch
        self._encoder = SentenceEncoder(config.path, "judge.path")
        # A request comes back in every epoch. It is encoded alone, because rounding depends on the batch, and a resumed
        # run must get the same vector.
        self._requests: dict[str, Vectors] = {}
        self._verdicts = self._cached = 0

    def score(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """See `Judge.score`."""
        if any(request.side != "user" for request in requests):
            raise UserError(
                "judge=embedding compares replies with the user's request and cannot grade r_sys; choose judge=openai, "
                "local or distilled"
            )
        prompts = dict.fromkeys(request.prompt for request in requests)
        self._cached += sum(request.prompt in self._requests for request in requests)
        for prompt in prompts:
            if prompt not in self._requests:
                self._requests[prompt] = self._encoder.encode([prompt])[0]
        replies = [own_text(request) for request in requests]
        distinct = [reply for reply in dict.fromkeys(replies) if reply]
        encoded = dict(zip(distinct, self._encoder.encode(distinct, self._batch), strict=True))
        self._verdicts += len(requests)
        scores = [
            float(self._requests[request.prompt] @ encoded[reply]) if reply else 0.0
            for request, reply in zip(requests, replies, strict=True)
        ]
        return [Verdict(min(max(score, 0.0), 1.0), "embedding") for score in scores]

    def counts(self) -> dict[str, float]:
        """See `Judge.counts`. `cached` counts requests that were encoded before; none is missing and none costs."""
        return {"verdicts": self._verdicts, "cached": self._cached, "missing": 0}


def own_text(request: JudgeRequest) -> str:
    """Return the reply without a verbatim copy of the whole request, and without blanks around it."""
    prompt = request.prompt.strip()
    return (request.response.replace(prompt, " ", 1) if prompt else request.response).strip()
