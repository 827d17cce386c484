"""`python -m agentrl` is the console script."""

from agentrl.cli import main

main()
