"""Untrusted tool code: a process for every task and a namespace for every call, behind one small interface."""

from agentrl.sandbox.pool import Episode, IsolationWarning, Result, Sandbox

__all__ = ["Episode", "IsolationWarning", "Result", "Sandbox"]
