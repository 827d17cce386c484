"""Runs untrusted tool code. Every task has its own process, and every call has a fresh namespace."""

from agentrl.sandbox.pool import Episode, IsolationWarning, Result, Sandbox

__all__ = ["Episode", "IsolationWarning", "Result", "Sandbox"]
