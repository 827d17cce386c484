"""Untrusted tool code: one fresh process and one fresh namespace a call, behind one small interface."""

from agentrl.sandbox.pool import IsolationWarning, Result, Sandbox

__all__ = ["IsolationWarning", "Result", "Sandbox"]
