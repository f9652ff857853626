"""Trains in a process that kills itself at the N-th change of a file of the run.

python -m tests.kill_at N COUNT_FILE --config=... --workdir=DIR

Every change that Python makes is counted (files opened for writing, renamed, removed,
folders made), from training and from Orbax alike; the kill comes just before it. With
N = 0 nothing is killed, and COUNT_FILE holds what was counted.
"""

import os
import pathlib
import signal
import sys

from jaxgpt import cli, train

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def main(number: int, count_file: str, arguments: list[str]) -> None:
    """Installs the hook and trains."""
    workdir = next(a for a in arguments if a.startswith("--workdir=")).split("=", 1)[1]
    inside = str(pathlib.Path(workdir).resolve()) + "/"
    seen: list[str] = []

    def hook(event: str, details: tuple) -> None:
        if event == "open":
            path, _, flags = details
            if not isinstance(path, str) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in CHANGES:
            path = details[0]
        else:
            return
        path = os.fsdecode(path) if isinstance(path, bytes | os.PathLike) else path
        if not isinstance(path, str) or not path.startswith(inside):
            return
        seen.append(f"{event} {path.removeprefix(inside)}")
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    sys.argv[1:] = arguments
    try:
        cli.main(train.command)
    finally:
        if not number:
            pathlib.Path(count_file).write_text("\n".join(seen))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
