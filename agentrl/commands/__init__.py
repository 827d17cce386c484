"""The verbs of the command line, one module each: `main(arguments) -> exit code`. See agentrl.cli.COMMANDS."""
