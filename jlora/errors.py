"""The one exception for what a user can mend: a wrong key, file, row, shape or name."""


class JloraError(ValueError):
    """A message of at most one screen: the path, what was expected, what was found, what to do.

    The commands print it without a traceback and end with exit code 2.
    """
