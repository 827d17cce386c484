"""agentrl: post-train language-model agents (PACT, HIPO, GRPO, SFT) from one command."""

__version__ = "0.1.0"
