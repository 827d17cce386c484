"""The packaged models: their recipes and their files."""
