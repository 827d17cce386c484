"""What this release is called."""

DISTRIBUTION = "agentrl-runner"  # on package indexes, where the name agentrl belongs to somebody else
__version__ = "0.1.0"
