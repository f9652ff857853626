"""Where a training step's time goes, here and in PyTorch under torch.compile.

python -m benchmarks.step_profile [--steps=20]

Both sides of `benchmarks.train_step` at its medium size, each in a process of its own
under its profiler: the milliseconds of each kind of work in the quickest of some steps.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import math
import multiprocessing
import pathlib
import re
import tempfile

from benchmarks import train_step
from benchmarks.alternate import machine

_, H, D, T, B = train_step.SIZES["medium"]
QKV, OUT, MLP, HEAD = (f"{p} product" for p in ("qkv", "output", "MLP's", "logits'"))
OTHER = "norms, sums, loss, casts, copies"
KINDS = (QKV, OUT, MLP, HEAD, "attention", "GELU", OTHER, "optimizer")
Kind = tuple[str, str]  # One of these, and "forward", "backward" or "".
Times = collections.Counter[Kind]


def product(sizes: set[int]) -> str:
    """Returns the kind of a matrix product between axes of these sizes."""
    wide = {3 * D: QKV, 4 * D: MLP, train_step.VOCAB: HEAD}
    return next((kind for axis, kind in wide.items() if axis in sizes), OUT)


def jaxgpt_times(dtype: str, steps: int) -> Times:
    """Returns the milliseconds of the quickest step, from XLA's trace."""
    import jax

    step = train_step.jaxgpt_step("medium", dtype)
    step()
    programs = jax.devices()[0].client.live_executables()
    modules = [p.hlo_modules()[0] for p in programs]
    text = next(m.to_string() for m in modules if m.name == "jit_step")
    bodies = dict(re.findall(r"^%?([\w.-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S))
    lines = dict(re.findall(r"^ +(?:ROOT )?%?([\w.-]+) = (.*)$", text, re.M))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0

    def traced() -> Times:
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder, profiler_options=options):
                step()
            trace = str(next(pathlib.Path(folder).rglob("*.xplane.pb")))
            planes = list(jax.profiler.ProfileData.from_file(trace).planes)
        times: Times = collections.Counter()
        for event in (e for p in planes for line in p.lines for e in line.events):
            if "hlo_op" in dict(event.stats):
                kind = kind_of(event.name, lines, bodies)
                times[kind] += event.duration_ns / 1e6
        return times

    return min((traced() for _ in range(steps)), key=Times.total)


def kind_of(name: str, lines: dict[str, str], bodies: dict[str, str]) -> Kind:
    """Returns the kind of an instruction of the compiled program."""
    line = lines[name]
    called = re.search(r"calls=%?([\w.-]+)", line)
    scope = "".join(re.findall(r'op_name="([^"]*)"', line)[:1])
    # Weights' gradients stand behind barriers, which leave them without a scope.
    direction = "backward" if "transpose(" in scope or not scope else "forward"
    result = axes(line)
    if len(result) < 4 and " dot(" in line + (bodies[called[1]] if called else ""):
        operands = re.findall(r"%([\w.-]+)", re.split(r"[()]", line)[1])
        sizes = {n for operand in operands for n in axes(lines[operand])}
        return product(sizes | {*result}), direction
    if scope and "jvp" not in scope:
        return "optimizer", ""
    if "feed_forward" in scope and math.prod(result) == B * T * 4 * D:
        return "GELU", direction
    heads = len(result) > 3 or 3 * D in result or result[:2] == (B, H)
    return "attention" if heads else OTHER, direction


def axes(line: str) -> tuple[int, ...]:
    """Returns the shape of an instruction's (first) result."""
    found = re.match(r"\(?\w+\[([\d,]+)\]", line)
    return tuple(map(int, found[1].split(","))) if found else ()


def torch_times(dtype: str, steps: int) -> Times:
    """Returns the same of the PyTorch step, from its profiler."""
    import torch

    torch._inductor.config.cpp.enable_kernel_profile = True
    step = train_step.torch_step("medium", dtype)
    step()

    def profiled() -> Times:
        with torch.profiler.profile(record_shapes=True) as profile:
            step()
        times: Times = collections.Counter()
        for event in profile.events():
            times[kind_of_event(event)] += event.self_cpu_time_total / 1e3
        return times

    return min((profiled() for _ in range(steps)), key=Times.total)


def kind_of_event(event) -> Kind:
    """Returns the kind of an event of PyTorch's profiler."""
    above, names = event, event.name
    while above := above.cpu_parent:
        names += above.name
    direction = "backward" if "ackward" in names else "forward"
    if event.name in ("aten::mm", "aten::addmm"):
        return product({n for s in event.input_shapes for n in s}), direction
    if "scaled_dot_product" in event.name:
        return "attention", direction
    if "gelu" in event.name:
        return "GELU", "backward" if "gelu_backward" in event.name else "forward"
    compiled = "Compiled" in names or "cpp_fused" in event.name
    return (OTHER, direction) if compiled else ("optimizer", "")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    print(machine())
    context = multiprocessing.get_context("spawn")
    for dtype in ("float32", "bfloat16"):
        sides = []
        for side in (torch_times, jaxgpt_times):
            with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
                sides.append(pool.submit(side, dtype, steps).result())
        print(f"{dtype + ', ms':44}{'torch.compile':>14}{'jaxgpt':>9}")
        rows = [(kind, d) for kind in KINDS for d in ("forward", "backward", "")]
        for row in filter(lambda row: any(times[row] for times in sides), rows):
            print(f"{' '.join(row):44}{sides[0][row]:14.1f}{sides[1][row]:9.1f}")
        print(f"{'all':44}{sides[0].total():14.1f}{sides[1].total():9.1f}", flush=True)


if __name__ == "__main__":
    main()
