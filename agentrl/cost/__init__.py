"""What a run needs, computed from its configuration: steps, tokens, memory, time and money."""
