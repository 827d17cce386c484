"""Turn by turn: the environment reads what the assistant said and answers, until nobody has anything to say.

The part of `GRPOTrainer._generate` that TRL calls `_tool_call_loop`. It differs from TRL's in two points: a turn is
read as the bench's official code reads it, and where the environment is a `Conversation`, the user speaks again after
a turn without calls. Results and the user's words are observations: their tokens are appended as the template writes
them and never trained on. Tokens are only ever appended, so a template that drops the reasoning of earlier turns is
not followed in that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trl import GRPOTrainer

from agentrl.chat.reading import TokenReader
from agentrl.core.bench import Conversation, Environment
from agentrl.core.errors import UserError
from agentrl.core.text import well_formed
from agentrl.core.trajectory import ToolCall
from agentrl.rollout.guard import call_tool

Messages = list[dict[str, Any]]
MARK = "the end of the assistant's turn"


@dataclass(frozen=True)
class Played:
    """The episodes of a batch while they are played, one entry a row."""

    environments: list[Environment]
    tools: list[list[dict[str, Any]]]
    calls: list[list[ToolCall]]  # receives the executed calls
    reader: TokenReader
    cut: set[int]  # receives the rows in which the environment's last words were too long


def conversation_loop(
    trainer: GRPOTrainer,
    played: Played,
    prompt_ids: list[list[int]],
    completion_ids: list[list[int]],
    logprobs: list[list[float]] | None,
) -> tuple[Any, ...]:
    """Play every episode from its first assistant turn to its end; same result as TRL's `_tool_call_loop`.

    `completion_ids` and `logprobs` are extended in place.
    """
    environments, calls = played.environments, played.calls

    def read(row: int, new: list[int], context: list[int]) -> dict[str, Any]:
        return played.reader.read(environments[row], new, context, played.tools[row])

    masks = [[1] * len(ids) for ids in completion_ids]
    completions = [[read(row, ids, prompt_ids[row])] for row, ids in enumerate(completion_ids)]
    active = list(range(len(completions)))
    for _ in range(trainer.max_tool_calling_iterations):
        contexts: dict[int, list[int]] = {}
        for row in active:
            said, over = react(environments[row], completions[row][-1], calls[row], trainer.config.faults.dead_tools)
            if said and not over:
                suffix = suffix_ids(trainer, said, completion_ids[row])
                context = prompt_ids[row] + completion_ids[row] + suffix
                # As TRL: what exceeds the budget was executed, but the model never sees it.
                over = len(context) - len(prompt_ids[row]) > trainer.max_completion_length
                over = over or len(context) >= context_limit(trainer)
                if over:
                    played.cut.add(row)
                else:
                    contexts[row] = context
                    completions[row] += said
            elif said:
                completions[row] += said
        if not contexts:
            break
        active = []
        sampled, sampled_logprobs = trainer._generate_single_turn(list(contexts.values()), None, {}, num_generations=1)
        for position, (row, context) in enumerate(contexts.items()):
            used = len(context) - len(prompt_ids[row])
            new = sampled[position][: trainer.max_completion_length - used]
            observed = used - len(completion_ids[row])
            masks[row] += [0] * observed + [1] * len(new)
            completion_ids[row] = context[len(prompt_ids[row]) :] + new
            if logprobs is not None:
                logprobs[row] += [0.0] * observed + sampled_logprobs[position][: len(new)]
            if new:
                completions[row].append(read(row, new, context))
                active.append(row)
    made = [call for row in calls for call in row]
    return (
        masks,
        completions,
        completion_ids,
        logprobs,
        len(made),
        sum(call.error for call in made),
        [[] for _ in calls],
    )


def react(
    environment: Environment, turn: dict[str, Any], calls: list[ToolCall], dead_tools: str
) -> tuple[Messages, bool]:
    """What the environment says to an assistant turn, and whether the episode ends with it.

    Every call is executed; without calls it is the user's turn to speak, if there is one.
    """
    if turn.get("tool_calls"):
        said = []
        for call in turn["tool_calls"]:
            function = call["function"]
            done = call_tool(environment, function["name"], function["arguments"], dead_tools)
            calls.append(done)
            said.append({"role": "tool", "name": str(function["name"]), "content": done.observation})
        return said, isinstance(environment, Conversation) and not environment.continue_episode()
    text = environment.next_message() if isinstance(environment, Conversation) else None
    return ([], True) if text is None else ([{"role": "user", "content": well_formed(text)}], False)


def suffix_ids(trainer: GRPOTrainer, said: Messages, before: list[int]) -> list[int]:
    """Token ids from the end of the assistant's turn to where it writes again."""
    tokenizer = trainer.processing_class
    # A turn that the token budget cut has no end of its own: the environment writes it.
    own_end = bool(before) and before[-1] in trainer.eos_token_ids
    if said[0]["role"] == "tool":
        ids: list[int] = trainer._get_tool_suffix_ids(said)
        closes = tokenizer.eos_token in str(trainer.chat_template or tokenizer.chat_template)
        return ids if own_end or not closes else [tokenizer.eos_token_id, *ids]
    ends = [tokenizer.decode([token]) for token in trainer.eos_token_ids]
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}, *said]
    text = tokenizer.apply_chat_template(
        turns,
        chat_template=trainer.chat_template,
        add_generation_prompt=True,
        tokenize=False,
        **trainer.chat_template_kwargs,
    )
    _, found, rest = text.partition(MARK)
    end = next((end for end in ends if rest.startswith(end)), None)
    if not found or end is None:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} does not end an assistant's turn with the end token right "
            "after its text, so no user message can follow; use a model with Qwen2.5's or Qwen3's template"
        )
    written: list[int] = tokenizer(("" if own_end else end) + rest.removeprefix(end), add_special_tokens=False)[
        "input_ids"
    ]
    return written


def context_limit(trainer: GRPOTrainer) -> int:
    """Longest input, in tokens, that the generation backend takes."""
    if trainer.use_vllm and trainer.vllm_mode == "colocate":
        return int(trainer.vllm_generation.llm.llm_engine.model_config.max_model_len)
    return int(trainer.model.config.max_position_embeddings)
