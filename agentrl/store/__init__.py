"""Files that must survive: the run directory, its records, checkpoints, identity and provenance."""
