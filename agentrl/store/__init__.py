"""Files that must survive a crash: the run directory, its records, checkpoints, identity and provenance."""
