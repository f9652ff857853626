"""What the dearest tests spend their time on: `make costs`.

A pytest plugin, off unless asked for: `python -m pytest -p tests.costs`.
"""

from __future__ import annotations

import collections
import resource
import subprocess
import time

import pytest

ROWS = 20
HEADER = "| test | cases | wall | trace | compile | programs | rest | processes |"

_BEFORE = pytest.StashKey[collections.Counter[str]]()
_spent: collections.Counter[str] = collections.Counter()
_by_test: dict[str, collections.Counter[str]] = {}


def _add_duration(event: str, seconds: float, **kwargs: object) -> None:
    if event.endswith(("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration")):
        _spent["trace"] += seconds
    elif event.endswith("backend_compile_duration"):
        _spent["compile"] += seconds
        _spent["programs"] += 1


def _snapshot() -> collections.Counter[str]:
    own = resource.getrusage(resource.RUSAGE_SELF)
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    now = {
        "wall": time.perf_counter(),
        "cpu": own.ru_utime + own.ru_stime,
        "processes": others.ru_utime + others.ru_stime,
    }
    return collections.Counter(now) + _spent


def pytest_sessionstart() -> None:
    """Starts to count: after conftest.py has set the compilation cache up."""
    import jax

    jax.monitoring.register_event_duration_secs_listener(_add_duration)
    start = subprocess.Popen.__init__

    def counted(self, *args, **kwargs):
        _spent["started"] += 1
        start(self, *args, **kwargs)

    subprocess.Popen.__init__ = counted


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Notes what was spent before a test and its fixtures."""
    item.stash[_BEFORE] = _snapshot()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Sends the costs with the last report of a test, from a worker too."""
    report = yield
    if call.when == "teardown":
        spent = _snapshot()
        spent.subtract(item.stash[_BEFORE])
        report.user_properties.append(("costs", dict(spent)))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Adds the cases of a test up."""
    for name, spent in report.user_properties:
        if name == "costs" and report.when == "teardown":
            test = _by_test.setdefault(
                report.nodeid.partition("@")[0].partition("[")[0], collections.Counter()
            )
            test.update(spent | {"cases": 1})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table: seconds, of this process's CPU but for the wall time."""
    terminalreporter.write_line(HEADER)
    terminalreporter.write_line("|---" * HEADER.count(" | ") + "|---|")
    dearest = sorted(_by_test, key=lambda name: -_by_test[name]["wall"])[:ROWS]
    for name in dearest:
        t = _by_test[name]
        rest = max(t["cpu"] - t["trace"] - t["compile"], 0)
        terminalreporter.write_line(
            f"| `{name.rpartition('/')[2]}` | {t['cases']} | {t['wall']:.0f} | "
            f"{t['trace']:.0f} | {t['compile']:.0f} | {t['programs']} | {rest:.0f} | "
            f"{t['processes']:.0f} ({t['started']}) |"
        )
