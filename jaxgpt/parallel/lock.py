"""A lock that one process holds at a time, and the kernel frees when it dies."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None  # type: ignore[assignment]

from jaxgpt.errors import UserError, log


@contextlib.contextmanager
def hold(path: pathlib.Path, what: str, busy: str, remedy: str) -> Iterator[None]:
    """Holds the lock that a file is, which is removed at the end.

    Args:
      path: of the file, in a folder that can be written.
      what: it protects, to name.
      busy: what another process does with it.
      remedy: then.

    Raises:
      UserError: naming the process that holds it.
    """
    if fcntl is None:
        log(f"note: this system has no file locks: use '{what}' from one process only")
        yield
        return
    while True:
        stream = open(path, "a+")  # noqa: SIM115 - held until the end
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read().strip() or "another process"
            stream.close()
            raise UserError(f"{what} is being {busy} by {owner}: {remedy}") from None
        # The previous owner may have removed the file between open and flock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                break
        stream.close()
    with stream:
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
