"""The one exception for what a user can mend: a wrong key, file, row, shape or name."""

_LONGEST = 8000
"""Characters."""


class JloraError(ValueError):
    """A message of at most one screen: the path, what was expected, what was found, what to do.

    The commands print it without a traceback and end with exit code 2. What a file says in it may be of any length:
    the middle of a very long message is left out.
    """

    def __init__(self, message: str) -> None:
        cut = len(message) - _LONGEST
        half = _LONGEST // 2
        super().__init__(message if cut <= 0 else f"{message[:half]} [{cut:,} characters] {message[-half:]}")
