"""The packaged models: their files, and the recipes that made them."""
