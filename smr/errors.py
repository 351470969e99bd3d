"""What ends a run; each message is for the person who started it."""


class InputError(ValueError):
    """Bad input: the message says what was found, what was expected and what to do."""


class RankLost(RuntimeError):
    """Another of torchrun's processes is gone, or its connection is."""


class NonFiniteLoss(RuntimeError):
    """A loss became NaN or infinite; the message says where."""
