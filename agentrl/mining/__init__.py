"""Make expert traces without a teacher: search for calls, run them and check their results."""
