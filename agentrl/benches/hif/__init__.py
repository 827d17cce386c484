"""Benches of hierarchical instruction following."""
