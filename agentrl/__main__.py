"""`python -m agentrl` is the console script."""

from agentrl.commands.cli import main

main()
