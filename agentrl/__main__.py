"""The console script `agentrl`, and `python -m agentrl`."""

import sys


def main() -> None:
    """Import the commands, which takes a second, and run the one that is meant. It always ends in SystemExit."""
    try:
        from agentrl.commands.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
