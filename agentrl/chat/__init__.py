"""Converts between messages and tokens: chat templates, the parts of a turn, calls read from text."""
