"""Judges give a response a score in [0, 1], for a system prompt or for a user's request, never for both at once."""
