"""The name and the version of this release."""

DISTRIBUTION = "agentrl-runner"  # the name on package indexes, where "agentrl" is another project
__version__ = "0.1.0"
