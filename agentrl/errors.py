"""The one error type whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend: says what is wrong, where, and how to mend it, in one line.

    The command line prints the message without a traceback and exits with status 2.
    Anything else that escapes is a bug (or the machine), and keeps its traceback.
    """
