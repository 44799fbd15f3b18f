"""Where the command line ends: failures become one sentence and an exit status, and output survives its terminal.

A terminal that cannot write a character gets `?` for it; a reader that has seen enough (`seeker runs | head`) ends the
command without a word; a full disk, or a folder that cannot be written, is the machine's and is said so. Anything else
that a verb raises is a defect, and keeps its stack trace. `SEEKER_DEBUG=1` keeps all of them.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

from project.errors import SeekerError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST)
FULL_TEXTS = ("No space left on device", "database or disk is full", "Disk quota exceeded")
"""How libraries that raise errors of their own say that the disk is full."""


def guarded(work: Callable[[], int]) -> int:
    """Return the exit status of `work`, or of its failure, which is told in one sentence."""
    debug = os.environ.get("SEEKER_DEBUG") == "1"
    prepare_output()
    try:
        status = work()
        sys.stdout.flush()  # what is buffered may not be written: better told here than as the interpreter ends
        return status
    except SeekerError as error:
        return _failed(str(error), error.exit_status, error if debug else None)
    except KeyboardInterrupt:
        return _failed("interrupted; run the same command again to continue", 1)
    except Exception as error:
        if is_reader_gone(error):
            _silence()
            return 1
        said = machine_sentence(error)
        if said is None:
            raise
        return _failed(said, 1, error if debug else None)


def prepare_output() -> None:
    """Have standard output and error write `?` for what their encoding lacks, and no escape codes where NO_COLOR is set."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: `seeker … >&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="replace")
    if os.environ.get("NO_COLOR") and any(stream.isatty() for stream in (sys.stdout, sys.stderr)):
        columns, lines = shutil.get_terminal_size()  # which rich does not ask a terminal that it takes for dumb
        os.environ.update(COLUMNS=str(columns), LINES=str(lines))
        os.environ["NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING"] = "1"  # which resets the terminal's colours as a process ends
        os.environ["TERM"] = "dumb"  # rich leaves colours away by itself, but not bold and the cursor's movements


def is_reader_gone(error: BaseException) -> bool:
    """Return whether an error is of a pipe that nobody reads any more: standard output or error, not a server's connection."""
    return isinstance(error, BrokenPipeError) and any(map(_has_no_reader, (sys.stdout, sys.stderr)))


def machine_sentence(error: BaseException) -> str | None:
    """Return what a full disk, or a place that cannot be written, is told as; None for any other error."""
    for cause in _causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        where = str(cause.filename) if isinstance(cause, OSError) and cause.filename else ""
        if number in DISK_FULL or any(text in str(cause) for text in FULL_TEXTS):
            return f"the disk is full{f' ({where})' if where else ''}; free some of it, and run the same command again"
        if number in NOT_ALLOWED and isinstance(cause, OSError):
            return f"{where or 'the system'}: {cause.strerror}; give another path, or change its rights"
        if number in IN_THE_WAY and (file := next((one for one in (Path(where), *Path(where).parents) if one.is_file()), None)):
            return f"{file} is a file where a folder is needed; give another path"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _failed(sentence: str, status: int, error: BaseException | None = None) -> int:
    """Say why; with an error raise it, for its stack trace."""
    if error is not None:
        raise error
    try:
        sys.stdout.flush()
    except OSError:
        _silence()
    with suppress(OSError):  # standard error may be as full, or gone
        sys.stderr.write(f"seeker: {sentence}\n")
    return status


def _has_no_reader(stream: object) -> bool:
    try:
        number = stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):  # not of a file: a test's, a notebook's
        return False
    poll = select.poll()
    poll.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _silence() -> None:
    """Send standard output nowhere: what is still buffered cannot be written, and the interpreter would complain as it ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
