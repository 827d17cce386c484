"""Start runs: from a checked configuration to a worker process that trains."""
