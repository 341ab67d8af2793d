"""The errors a user can cause, and those of others in one line."""


class EagleEyeError(ValueError):
    """Bad input: the message names the argument, its value, the cause and the remedy."""


class NotFiniteError(EagleEyeError, FloatingPointError):
    """Numbers that are not finite came out: of one candidate, that is a bad score and no fault of the device."""


def describe_error(error: BaseException) -> str:
    """The kind of an error and the first line of its message, if it has one: a bare `assert` has none."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
