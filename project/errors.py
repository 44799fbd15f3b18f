"""One exception per boundary; every message is one sentence with what, which value, and the way out.

`seeker` prints the message of a `SeekerError` without a stack trace and exits with its `exit_status`.
"""


class SeekerError(Exception):
    """Something failed for a reason that a user can act on."""

    exit_status = 1


class InputError(SeekerError):
    """The arguments or the input are wrong: a file, line, field or value that the user can mend."""

    exit_status = 2


class RenderingError(InputError):
    """A conversation cannot be rendered so that the model sees all it holds."""


class RetrievalError(SeekerError):
    """The retrieval server is down, slow, or answered with something that is not a result."""


class BusyError(SeekerError):
    """More waits than may; the same request can be made again later."""


class EngineError(SeekerError):
    """An inference engine cannot start, or its weights disagree with the trainer's."""


class TrainingError(SeekerError):
    """Training must stop before the next optimizer step (a non-finite loss or gradient, too many failed episodes)."""


class JudgeError(SeekerError):
    """The judge of the answers failed."""


class TrackingError(SeekerError):
    """A run, metric or artifact that tracking was asked for does not exist, or the store of runs cannot be reached."""
