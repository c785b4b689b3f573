"""The one exception that says: the caller asked for something that cannot be done."""


class MiloraError(ValueError):
    """A wrong call, in one line: what, got, allowed.

    The command line turns it into ``error: ...`` on stderr and exit code 2; anything else that is
    raised is a failed run (exit code 1).
    """
