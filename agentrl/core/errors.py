"""The one error type whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend: says what is wrong, where, and how to mend it, in one line.

    The command line prints the message without a traceback and exits with status 2.
    Anything else that escapes is a bug (or the machine), and keeps its traceback.
    """


def first_line(error: Exception) -> str:
    """First line of an error's message, for the reason in a message of one line; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
