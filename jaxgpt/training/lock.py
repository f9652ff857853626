"""A lock that keeps the folder of a run to one process."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

from jaxgpt.config import make_folder, writing
from jaxgpt.parallel import lock


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder and holds its lock.

    Raises:
      UserError: naming the process that has it, or if the folder cannot be written.
    """
    make_folder(workdir)
    remedy = "wait for it or stop it, or use another --workdir"
    held = lock.hold(workdir / "lock", f"'{workdir}'", "trained in", remedy)
    with contextlib.ExitStack() as stack:
        with writing(workdir):
            stack.enter_context(held)
        yield
