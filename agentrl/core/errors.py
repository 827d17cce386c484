"""The one error type whose message is written for the user."""


class UserError(Exception):
    """A mistake that the user can mend. The message says in one line what is wrong, where, and how to mend it.

    The command line prints the message without a traceback and exits with status 2.
    Any other exception is a bug or a fault of the machine, and keeps its traceback.
    """


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, to quote it in one line; the error's class if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
