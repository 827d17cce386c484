"""Rules on several keys, on files and on the machine. They refuse a configuration before anything is loaded.

Rules on one key are declared with the key (config/key.py). Each file here answers one question:

    fit        do algorithm, bench, reward and judge go together?
    learning   is there anything to learn from?
    batches    does everything divide?
    files      is what a key names there?
    machine    can this machine do it?
    split      was the model trained on rows of the test?
"""

from __future__ import annotations

from agentrl.config.rules.batches import check_batches
from agentrl.config.rules.files import check_files
from agentrl.config.rules.fit import check_fit
from agentrl.config.rules.learning import check_learning
from agentrl.config.rules.machine import check_machine
from agentrl.config.rules.split import check_split
from agentrl.config.schema import Config


def validate(config: Config) -> list[str]:
    """Raise UserError for the first impossible combination. Return warnings about unwise combinations."""
    check_files(config)
    check_learning(config)
    warnings = check_fit(config)
    warnings += check_machine(config)
    check_batches(config)
    warnings += check_split(config)
    return warnings
