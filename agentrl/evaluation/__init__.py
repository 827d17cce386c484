"""Evaluating a policy, and what the evaluated items say as a whole."""
