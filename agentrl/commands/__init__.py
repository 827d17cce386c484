"""The command line: cli.py, and one module for each command in COMMANDS, with HELP and main(arguments) -> exit code."""
