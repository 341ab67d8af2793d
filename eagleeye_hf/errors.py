"""The errors a user can cause."""


class EagleEyeError(ValueError):
    """Bad input: the message names the argument, its value, the cause and the remedy."""
