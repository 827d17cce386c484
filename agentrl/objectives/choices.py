"""The names of the variants that the objectives know, which the configuration offers in the same order.

They stand apart from the mathematics, so that a configuration is read without loading torch.
"""

from __future__ import annotations

from typing import Literal

Aggregation = Literal["sequence", "token"]  # policy.average
RatioLevel = Literal["sequence", "sequence_mean", "token"]  # policy.importance_ratio
SftNorm = Literal["weights", "tokens"]  # pact.sft_loss
Selection = Literal["all", "positive"]  # pact.conditioned_weights
ReasoningSchedule = Literal["segment", "token", "full_token", "fixed", "none"]  # pact.sft_token_weights
CallSchedule = Literal["scale", "token", "fixed", "none"]  # pact.sft_token_weights
TokenWeight = Literal["uniform", "phi"]  # chord.chord_sft_loss
AnnealKind = Literal["linear", "constant", "cosine", "steps"]  # schedules.anneal_value
FadeDriver = Literal["updates", "success", "loss"]  # schedules.loss_progress; where a schedule's progress comes from
DualUpdate = Literal["sgd", "adam", "pid", "log", "fixed"]  # dual.Multiplier
