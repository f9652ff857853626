"""Hooks and fixtures of the whole suite: tests/ and parity_tests/ import them.

How the suite is kept fast is in docs/testing.md.
"""

from __future__ import annotations

import gc
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile

import pytest

# It starts `uname` once and remembers; libraries ask for it in the middle of any test.
platform.processor()

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
# Beyond this the compiled programs of earlier sessions are dropped: each change of the
# code leaves some that nothing will ask for again.
CACHE_BYTES = 2 << 30
# Fixtures that train or start a process, with the mark of the tests that use them.
MARKS = {
    "trained": "trains",
    "played": "trains",
    "teeny": "trains",
    "straight": "process",
    "device_losses": "process",
}

__all__ = [
    "optimisation",
    "programs_of_one_module",
    "pytest_collection_finish",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_report_teststatus",
    "quick_unless_marked",
]


def shared_cache() -> pathlib.Path:
    """Returns the folder of compiled programs that all clones on a machine share."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "jaxgpt-tests" / "xla"


def pytest_configure() -> None:
    """Sets up what this process and those it starts share."""
    # All programs are kept, the smallest too: most tests compile dozens of those, and
    # to load one takes a tenth of the time.
    os.environ.setdefault(CACHE_VARIABLE, str(cache_folder(shared_cache())))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if "jax" in sys.modules:  # A conftest.py of files named on the command line has it.
        import jax

        jax.config.update("jax_compilation_cache_dir", os.environ[CACHE_VARIABLE])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # An entry that another process is just writing, or was killed in writing, cannot be
    # read: its program is compiled again, and tests that read stderr need not know.
    os.environ.setdefault(
        "PYTHONWARNINGS", "ignore:Error reading persistent compilation cache"
    )
    # Two workers on two cores: idle threads of FAISS and PyTorch must not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def cache_folder(wanted: pathlib.Path) -> pathlib.Path:
    """Returns a folder for compiled programs: a temporary one if `wanted` is no use."""
    try:
        if _size(wanted) > CACHE_BYTES and "PYTEST_XDIST_WORKER" not in os.environ:
            shutil.rmtree(wanted)
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            return wanted
    except OSError:
        return pathlib.Path(tempfile.mkdtemp(prefix="jaxgpt-xla-"))


def _size(folder: pathlib.Path) -> int:
    if not folder.is_dir():
        return 0
    return sum(entry.stat().st_size for entry in os.scandir(folder))


def pytest_report_teststatus(report: pytest.TestReport) -> tuple | None:
    """Names a failed test at once: the report on it comes at the end."""
    if not report.failed:
        return None
    kind = "failed" if report.when == "call" else "error"
    return kind, f"\n{kind.upper()} {report.nodeid}\n", kind.upper()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by their fixtures; orders the quick tests first, trainings last."""
    for item in items:
        for fixture in _costly_fixtures(item):
            item.add_marker(MARKS[fixture])
    # Those that use one run stand together: one worker has them, and trains it once.
    items.sort(key=lambda item: (rank(item), _costly_fixtures(item)))


def _costly_fixtures(item: pytest.Item) -> list[str]:
    return sorted(MARKS.keys() & set(getattr(item, "fixturenames", ())))


def pytest_collection_finish() -> None:
    """Keeps the garbage collector from what was imported: 700,000 objects.

    To look through them takes half a second each time, and each module ends with it.
    Tracing makes many objects that live for long: it is interrupted less often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


def rank(item: pytest.Item) -> int:
    """Returns 0 for quick tests, 1 for those that start processes, 2 for trainings."""
    marks = {mark.name for mark in item.iter_markers()}
    return 2 if "trains" in marks else int("process" in marks)


@pytest.fixture(autouse=True)
def quick_unless_marked(request, monkeypatch):
    """Keeps `make quick` quick: only marked tests train or start a process."""
    marks = {mark.name for mark in request.node.iter_markers()}

    def refuse(mark):
        def refused(*args, **kwargs):
            raise AssertionError(f"mark this test with pytest.mark.{mark}")

        return refused

    # First this: it imports matplotlib, which on a new machine asks for its fonts.
    if "trains" not in marks:
        monkeypatch.setattr("jaxgpt.training.loop.Trainer.__init__", refuse("trains"))
    if "process" not in marks:
        monkeypatch.setattr(subprocess.Popen, "__init__", refuse("process"))


@pytest.fixture(autouse=True)
def optimisation(request):
    """Compiles the programs of `unoptimised` tests in half the time.

    What they compute is the same but for rounding; tests of bits, of tolerances and of
    the originals' numbers, and all processes that tests start, compile as users do.
    """
    import jax

    marked = request.node.get_closest_marker("unoptimised") is not None
    jax.config.update("jax_disable_most_optimizations", marked)
    yield
    # What fixtures train for many tests is always optimised, whoever asks first.
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module():
    """Drops compiled programs after each module.

    On a CPU each takes some twenty memory maps, and Linux gives a process 65,530: past
    them the compiler crashes.
    """
    yield
    import jax

    jax.clear_caches()
    gc.collect()
