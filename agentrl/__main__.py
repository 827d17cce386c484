"""`python -m agentrl`: the same as the console script."""

from agentrl.cli import main

main()
