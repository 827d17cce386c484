"""BFCL v4; `bench.py` is the entry."""
