"""Compiles the step of a config for a TPU slice, and bounds its speed.

XLA compiles for a GPU only on one. So for GPUs the step is compiled for as many CPU
devices, which shows the collectives, and the memory of activations is estimated.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import math
import re
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from jaxgpt import backend, cli
from jaxgpt.errors import UserError, one_line
from jaxgpt.model.layers import count_parameters
from jaxgpt.parallel import hardware, hlo, sharding
from jaxgpt.parallel.hardware import CHIPS, TOPOLOGIES, Chip
from jaxgpt.systems.registry import build_system, system_class
from jaxgpt.training import optimizers
from jaxgpt.training.progress import status
from jaxgpt.training.step import fresh_state, make_step

RESERVED = 0.25 * 2**30  # bytes of each chip that the runtime keeps
# Bytes of activations kept for the backward pass, per token, layer and unit of width,
# at 16 bits (arXiv 2205.05198, section 4.1, without the attention scores).
ACTIVATION_BYTES = 34
# The same by `model.remat`: "dots" keeps the results of a block's matrix products, ten
# times its width at 16 bits; "full" keeps its input in float32.
KEPT_BYTES = {"none": ACTIVATION_BYTES, "dots": 20, "full": 4}
# In the compiler's error: the size tells which setting would help.
OUT_OF_MEMORY = r"(?:temporaries \(|Used )([\d.]+)([KMG])(?:\) exceeds| of)"


def execute(args: argparse.Namespace, config: ConfigDict) -> int:
    """Prints the plan."""
    backend.set_up_jax()
    # Programs for absent devices can be written to the cache, but not read back.
    jax.config.update("jax_enable_compilation_cache", False)
    with status(f"compiling the step for {args.topology}"):
        found = plan(config, args.topology)
    if args.json:
        cli.print_json(found)
    else:
        print(report(found, config))
    return 0


def open_topology(name: str) -> tuple[Chip, list[Any]]:
    """Returns the chip and the devices of a topology such as "v5e:2x4".

    Raises:
      UserError: if libtpu is not installed or there is no such topology.
    """
    if gpus := hardware.gpus(name):
        return gpus[0], jax.devices()[: gpus[1]]
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    if not match or match[1] not in CHIPS:
        raise UserError(f"unknown --topology='{name[:40]}': there are {TOPOLOGIES}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the compiler for TPUs, libtpu, is not installed: pip install "
            "'jaxgpt[plan]' (Linux on x86-64)"
        )
    # A v5e host has several chips: a slice of one chip is part of a host.
    single = set(match[2].split("x")) == {"1"}
    bounds: dict[str, Any] = {"chips_per_host_bounds": [1, 1, 1]} if single else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **bounds
        )
    except Exception as error:  # Its type depends on what is wrong.
        raise UserError(
            f"--topology={name} cannot be used ({one_line(error, 160)}): there are "
            f"{TOPOLOGIES}"
        ) from None
    return CHIPS[match[1]], list(found.devices)


def compile_step(config: ConfigDict, devices: list[Any]) -> dict[str, Any]:
    """Compiles the step that `jaxgpt.train` would run.

    Returns:
      The keys of `plan` that come from the compiler; memory is in bytes per chip.
      "refused" is whether the compiler ran out of it.

    Raises:
      UserError: if the config does not suit the devices.
    """
    platform = devices[0].platform  # "cpu" when planning for GPUs.
    system = build_system(config, platform)
    optimizer = optimizers.make_optimizer(config)
    init = functools.partial(fresh_state, system, optimizer)
    shapes = jax.eval_shape(init, jax.random.key(0))
    mesh = sharding.make_mesh(config, devices)
    layout = sharding.layout(shapes, mesh, config.batch_size)
    state = layout.abstract(shapes)
    tokens = jax.ShapeDtypeStruct(
        (config.batch_size, system.window), np.int32, sharding=layout.rows
    )
    index = jax.ShapeDtypeStruct((), np.int32, sharding=layout.replicated)
    step = make_step(system, optimizer, layout)
    began, worked = time.perf_counter(), time.process_time()
    lowered = step.trace(state, index, tokens).lower(lowering_platforms=(platform,))

    def held(name: str) -> float:
        leaves = jax.tree.leaves(state.get(name, ()))
        shards = [
            (leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in leaves
        ]
        return float(sum(math.prod(s) * dtype.itemsize for s, dtype in shards))

    memory = {
        "parameters": held("params"),
        "optimizer": held("opt_state") + held("ema"),
    }
    text = ""
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        memory["activations"] = _bytes_refused(error)
        memory["total"] = sum(memory.values())
    else:
        text = program.as_text()
        memory |= _compiled_memory(program.memory_analysis())
    if platform == "cpu":
        memory = {name: memory[name] for name in ("parameters", "optimizer")}
        memory["gradients"] = memory["parameters"]
        memory["activations"] = kept_bytes(config, len(devices))
        memory["total"] = sum(memory.values())
    traffic = hlo.collectives(text) if text else {}
    return {
        "parameters": count_parameters(shapes["params"]),
        "optimizer_flops_per_chip": optimizers.flops_per_device(
            config, shapes["params"]
        ),
        "refused": not text,
        "memory_per_chip": memory,
        "collectives": {kind: dataclasses.asdict(t) for kind, t in traffic.items()},
        "attention_kernels": text.count('custom_call_target="tpu_custom_call"'),
        "compile_seconds": time.perf_counter() - began,
        "compile_processor_seconds": time.process_time() - worked,
    }


def _compiled_memory(found: Any) -> dict[str, float]:
    """Returns bytes by kind, from the compiler's analysis of a program."""
    kinds = {
        "activations": float(found.temp_size_in_bytes),
        "program": float(found.generated_code_size_in_bytes),
    }
    # Donated inputs share their memory with outputs.
    arrays = found.argument_size_in_bytes + found.output_size_in_bytes
    total = sum(kinds.values()) + float(arrays - found.alias_size_in_bytes)
    return kinds | {"total": total}


def kept_bytes(config: ConfigDict, devices: int) -> float:
    """Returns an estimate of the bytes a GPU keeps for the backward pass.

    Attention is cuDNN's, without scores; logits and their gradient are in bfloat16.
    """
    c, m = config, config.model
    width = 1 if m.dtype == "bfloat16" else 2
    per_token = KEPT_BYTES[m.remat] * m.n_layer * m.n_embd * width
    if m.remat != "none":
        per_token += ACTIVATION_BYTES * m.n_embd * width  # The block being recomputed.
    share = min(1.0, m.loss_chunk / m.block_size) if m.loss_chunk else 1.0
    per_token += 2 * 2 * m.vocab_size * width * share / c.mesh.tensor
    rows = c.batch_size / c.accumulation * c.mesh.tensor / devices
    return per_token * rows * m.block_size


def _bytes_refused(error: Exception) -> float:
    """Returns the bytes of activations that did not fit, from the compiler's error."""
    used = re.search(OUT_OF_MEMORY, " ".join(str(error).split()))
    if not used:
        raise UserError(
            f"the compiler refuses this step: {one_line(error, 300)}"
        ) from None
    return float(used[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[used[2]]


def roofline(
    config: ConfigDict, chip: Chip, chips: int, found: dict[str, Any], sent: float
) -> dict[str, float]:
    """Returns the minimum seconds of a step by resource, and the rates that follow.

    Args:
      chip: from its data sheet.
      found: from `compile_step`.
      sent: bytes each chip sends in a step.
    """
    c, m = config, config.model
    system = build_system(config)
    tokens = c.batch_size * system.num_predicted
    parameters, held = found["parameters"], found["memory_per_chip"]
    per_token = system.flops_per_token(parameters)
    flops = per_token * tokens / chips
    # Parameters, gradients and the optimizer's state, read and written.
    own = 2 * (2 * held["parameters"] + held["optimizer"])
    # In bfloat16, read by the forward and the backward pass of each accumulated batch.
    weights = 2 * 2 * parameters / c.mesh.tensor * c.accumulation
    # For the loss, three float32 arrays of the size of the logits.
    kept = ACTIVATION_BYTES * m.n_layer * m.n_embd + 3 * 4 * m.vocab_size
    moved = own + weights + 2 * kept * tokens / chips
    times = {
        "compute": (flops + found["optimizer_flops_per_chip"]) / chip.flops,
        "memory": moved / chip.bandwidth,
        "links": sent / chip.links,
    }
    best, worst = max(times.values()), sum(times.values())
    return {
        **{f"{name}_seconds": value for name, value in times.items()},
        "flops_per_token": per_token,
        "flops_per_step": per_token * tokens,
        "tokens_per_step": tokens,
        "tokens_per_second": tokens / best,
        "tokens_per_second_without_overlap": tokens / worst,
        "mfu": flops / chip.flops / best,
        "mfu_without_overlap": flops / chip.flops / worst,
    }


def advice(config: ConfigDict, chips: int, memory: dict[str, float]) -> str:
    """Returns the setting that saves most memory per chip."""
    held = memory["parameters"] + memory["optimizer"]
    rows = config.batch_size // config.accumulation
    if held > memory["activations"] and config.mesh.fsdp < chips:
        return f"--config.mesh.fsdp={chips} splits parameters and optimizer moments"
    if config.model.remat != "full":
        return "--config.model.remat=full keeps no activations within a block"
    if rows > chips:
        return (
            f"--config.accumulation={2 * config.accumulation} halves the rows at once"
        )
    return "a slice with more chips, and --config.mesh.fsdp set to their number"


def plan(config: ConfigDict, topology: str) -> dict[str, Any]:
    """Returns everything that the command prints; UserError if it cannot be planned."""
    system = system_class(config.system)
    if system.unplannable:
        raise UserError(f"system={config.system} {system.unplannable}")
    chip, devices = open_topology(topology)
    system.resolve(config)
    if not config.model.vocab_size:
        config.model.vocab_size = 1
        probe = build_system(config)
        config.model.vocab_size = probe.vocab_size_for(probe.open_data())
    found, chips = compile_step(config, devices), len(devices)
    memory, limit = found["memory_per_chip"], chip.memory - RESERVED
    sent = sum(traffic["bytes"] for traffic in found["collectives"].values())
    fits = not found.pop("refused") and memory["total"] <= limit
    return {
        "topology": topology,
        "chips": chips,
        "fits": fits,
        "memory_limit": limit,
        "advice": advice(config, chips, memory),
        **found,
        **roofline(config, chip, chips, found, sent),
    }


def report(found: dict[str, Any], config: ConfigDict) -> str:
    """Returns the plan as text."""
    f, m = found, config.model
    memory = f["memory_per_chip"] | {"limit": f["memory_limit"]}
    chip, how = "chip", "written and\nread once"
    if hardware.gpus(f["topology"]):
        chip = "GPU"
        how = (
            "written and\nread once; 20 of them kept with model.remat=dots and 4 with "
            "full, and 4 of each logit (an\nestimate, without a GPU's compiler); the "
            "collectives of as many CPU devices"
        )
    kinds = f["collectives"].items()
    sent = {f"{one['count']} x {kind}": one["bytes"] for kind, one in kinds}
    times = {name: f[f"{name}_seconds"] for name in ("compute", "memory", "links")}
    count = f"{f['chips']} {chip}{'s' * (f['chips'] > 1)}"
    return f"""\
{f["topology"]}: {count}, {f["parameters"]:,} parameters
compiled in {f["compile_seconds"]:.0f} s ({f["compile_processor_seconds"]:.0f} s of CPU)

memory per {chip}, GiB
{_table(memory, 2**30)}
  {"fits" if f["fits"] else "DOES NOT FIT"}; to use less: {f["advice"]}

FLOPs: L {m.n_layer}, D {m.n_embd}, T {m.block_size}
  {f["flops_per_token"]:.4g} per token, {f["flops_per_step"]:.4g} per step
  {_formula(m.mixer)}

collectives of a step, and MB that each {chip} sends
{_table(sent, 1e6) or "  none"}

minimum time of a step, ms
{_table(times, 1e-3)}

tokens/s, at most
  {f["tokens_per_second"]:,.0f} (MFU {f["mfu"]:.0%}) if the three overlap
  {f["tokens_per_second_without_overlap"]:,.0f} ({f["mfu_without_overlap"]:.0%}) if not
Assumed: the vendor's peak bfloat16 rate, bandwidth and links; rings over all links;
{ACTIVATION_BYTES} bytes of activations per token, layer and unit of width, {how};
parameters, gradients and moments in float32."""


def _formula(mixer: str) -> str:
    if mixer == "attention":
        formula = "6 N + 12 L D T: N without tables that are looked up; "
        return formula + "masked scores are counted"
    return f"6 N: N without tables that are looked up; of {mixer} only its matrices"


def _table(rows: dict[str, float], unit: float) -> str:
    lines = [f"  {name:<24}{value / unit:12.3f}" for name, value in rows.items()]
    return "\n".join(lines)
