"""The one error type that tells a user what to do."""


class SfvgenError(ValueError):
    """Bad input, told in one sentence: what is wrong, where, and what would be right.

    The command line prints the sentence without a traceback and exits with code 2.
    """


def require(condition: bool, message: str) -> None:
    """Raise an :class:`SfvgenError` unless ``condition`` holds."""
    if not condition:
        raise SfvgenError(message)
