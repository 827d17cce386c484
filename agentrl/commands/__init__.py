"""The verbs of the command line (agentrl.cli.COMMANDS), one module each: HELP, and main(arguments) -> exit code."""
