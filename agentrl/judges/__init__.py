"""Judges: a score in [0, 1] of a response against a system prompt or a user's request, never against both at once."""
