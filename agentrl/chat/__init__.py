"""Between messages and tokens: templates, the spans of a turn, calls read from text."""
