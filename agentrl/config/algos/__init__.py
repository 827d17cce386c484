"""The keys of the algorithms: the group `algo`."""
