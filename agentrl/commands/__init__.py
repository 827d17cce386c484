"""The command line: cli.py, and one module for each verb in COMMANDS, with HELP and main(arguments) -> exit code."""
