"""BFCL v4. Start reading at `bench.py`."""
