"""A judge that is a Hugging Face causal model in this process."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from agentrl.config.judges import LocalJudge
from agentrl.core.errors import UserError, first_line
from agentrl.core.judge import JudgeRequest, Verdict
from agentrl.judges.cache import Usage, VerdictCache
from agentrl.judges.form import Form, Messages
from agentrl.judges.rubric_judge import Question, RubricJudge
from agentrl.judges.rubrics import rubric_form
from agentrl.models.places import checkpoint_path


class InProcessJudge(RubricJudge):
    """Asks for greedy replies in batches. It draws no random numbers, so the run's random states stay as they are."""

    def __init__(
        self, config: LocalJudge, cache: VerdictCache, payer: str, device: str, form: Form | None = None
    ) -> None:
        path = checkpoint_path(config.path)
        form = form or rubric_form(config.system_rubric, config.user_rubric)
        self._max_tokens = form.max_tokens or config.max_tokens
        settings = {
            "revision": config.revision,
            "weights": weights_digest(Path(path)),
            "dtype": config.dtype,
            "max_tokens": self._max_tokens,
        }
        super().__init__(config.path, form, settings, config.parse_retries, cache, payer)
        self.config = config
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, revision=config.revision, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(
                path, revision=config.revision, dtype=getattr(torch, config.dtype)
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"judge.path={config.path} cannot be loaded: {first_line(error)}") from error
        if self._tokenizer.chat_template is None and not form.raw:
            raise UserError(f"judge.path={config.path}: its tokenizer has no chat template; name an instruct model")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model = model.to(device).eval()
        self.control_tokens = control_tokens(self._tokenizer)

    def _ask_all(self, questions: list[Question]) -> dict[str, Verdict]:
        verdicts: dict[str, Verdict] = {}
        waiting = [(question, question.messages) for question in questions]
        for attempt in range(self.tries):
            again: list[tuple[Question, Messages]] = []
            for start in range(0, len(waiting), self.config.batch):
                batch = waiting[start : start + self.config.batch]
                replies = self._reply([asked for _, asked in batch])
                for (question, _), (reply, usage) in zip(batch, replies, strict=True):
                    verdict, asked = self._read(question, reply, usage, last=attempt == self.tries - 1)
                    if verdict is None:
                        again.append((question, asked))
                    else:
                        verdicts[question.key] = verdict
            waiting = again
        return verdicts

    @torch.no_grad()
    def _reply(self, batch: list[Messages]) -> list[tuple[str, Usage]]:
        prompts = [self._render(asked) for asked in batch]
        begins = self.form.raw and self.form.begins
        encoded = self._tokenizer(prompts, add_special_tokens=begins, padding=True, return_tensors="pt")
        encoded = encoded.to(self._model.device)
        made = self._model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=self._max_tokens,
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id,
        )[:, encoded["input_ids"].shape[1] :]
        replies = self._tokenizer.batch_decode(made, skip_special_tokens=True)
        read = encoded["attention_mask"].sum(1).tolist()
        written = (made != self._tokenizer.pad_token_id).sum(1).tolist()
        return [(reply, Usage(1, int(r), int(w))) for reply, r, w in zip(replies, read, written, strict=True)]

    def _question(self, request: JudgeRequest) -> Question:
        """Return the question about a response, which the form may cut to its first tokens (as its authors do)."""
        if self.form.clip is not None:
            ids = self._tokenizer(request.response, truncation=True, max_length=self.form.clip)["input_ids"]
            request = replace(request, response=self._tokenizer.decode(ids, skip_special_tokens=True))
        return super()._question(request)

    def _render(self, asked: Messages) -> str:
        """Return the prompt text.

        If the template has no system role (Gemma's), the rubric comes before the user's message. A reasoning model is
        asked not to think; templates without such a switch ignore this.
        """
        if self.form.raw:
            return asked[0]["content"]
        try:
            return self._template(asked)
        except TemplateError:
            system, user, *rest = asked
            return self._template([{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest])

    def _template(self, asked: Messages) -> str:
        render = self._tokenizer.apply_chat_template
        return str(render(asked, tokenize=False, add_generation_prompt=True, enable_thinking=False))


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Return the strings that `tokenizer` reads as control tokens: special ones, and added ones of the template."""
    template = str(tokenizer.chat_template)
    added = tokenizer.added_tokens_decoder.values()
    return frozenset(
        token.content for token in added if token.content.strip() and (token.special or token.content in template)
    )


def weights_digest(folder: Path) -> str | None:
    """Return a digest of the names, sizes and times of a local checkpoint's files; None for a hub id.

    Weights that were trained further under the same path make another judge.
    """
    if not folder.is_dir():
        return None
    files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
