"""agentrl: post-train language-model agents (PACT, HIPO, GRPO, SFT) from one command."""

DISTRIBUTION = "agentrl-runner"  # on package indexes, where the name agentrl belongs to somebody else
__version__ = "0.1.0"
