"""The one error type that tells a user what to do."""

from numbers import Integral


class SfvgenError(ValueError):
    """Bad input, told in one sentence: what is wrong, where, and what would be right.

    The command line prints the sentence without a traceback and exits with code 2.
    """


def require_count(name: str, value: int, least: int = 1) -> None:
    """Raise an :class:`SfvgenError` unless ``value`` is a whole number of at least ``least``."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    require(is_whole, f"{name} must be a whole number, got {value!r}")
    require(value >= least, f"{name} must be at least {least}, got {value}")


def check_counts(config: object, *names: str) -> None:
    """Refuse a config with one of these fields below 1; None stands for no limit."""
    for name in names:
        value = getattr(config, name)
        if value is not None:
            require_count(name, value)


def check_seed(seed: int | None) -> None:
    """Refuse a seed that is no whole number of at least 0; None stands for a new one."""
    if seed is not None:
        require_count("seed", seed, least=0)


def require(condition: bool, message: str) -> None:
    """Raise an :class:`SfvgenError` unless ``condition`` holds."""
    if not condition:
        raise SfvgenError(message)
