"""A lock that keeps the folder of a run to one process."""

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

from jaxgpt.config import make_folder, writing
from jaxgpt.errors import UserError, log


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder, and holds a lock that the kernel frees when the process dies.

    Raises:
      UserError: naming the process that has it, or if the folder cannot be written.
    """
    path = workdir / "lock"
    if fcntl is None:
        make_folder(workdir)
        log(f"note: nothing on this system keeps a second run out of '{workdir}'")
        yield
        return
    while True:
        make_folder(workdir)
        with writing(workdir):
            stream = open(path, "a+")  # noqa: SIM115 - held as long as the run
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read().strip() or "another process"
            raise UserError(
                f"'{workdir}' is being trained in by {owner}: wait for it or stop it, "
                "or take another --workdir"
            ) from None
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
