"""Evaluate a policy, and summarise the evaluated items."""
