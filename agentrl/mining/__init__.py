"""Expert traces made without a teacher: calls are searched for, run and checked."""
