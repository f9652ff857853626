"""Will a config fit a TPU slice, and how fast can it be: compiled here, on a CPU.

python -m jaxgpt.plan --config=configs/sigma_text.py --topology=v5e:4x4
python -m jaxgpt.plan --config=configs/sigma_text.py --topology=v5e:4x4 \
    --config.mesh.fsdp=16 --config.model.remat=full --json=-
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import time
from typing import TYPE_CHECKING, Any

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.errors import UserError

if TYPE_CHECKING:
    import jax
    from ml_collections import ConfigDict

    from jaxgpt.parallel.hlo import Traffic


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip by its vendor's sheet.

    Attributes:
      flops: bfloat16 FLOP/s.
      memory: bytes of HBM.
      bandwidth: bytes/s to and from it.
      links: bytes/s to other chips, over all its links.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float


CHIPS = {
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 448e9),
}
EXAMPLES = "v5e:1x1 to v5e:16x16, v6e:1x1 to v6e:16x16, v5p:2x2x1 to v5p:4x8x8"
RESERVED = 0.25 * 2**30  # Of each chip's memory, by the runtime.
# Bytes of activations a token leaves in a layer per unit of width, at 16 bits
# (arXiv 2205.05198, section 4.1, without the scores).
ACTIVATION_BYTES = 34
# The compiler's complaint.
OUT_OF_MEMORY = r"(?:temporaries \(|Used )([\d.]+)([KMG])(?:\) exceeds| of)"
# Libtpu would look for a TPU, and leave logs and a lock behind.
QUIET = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def open_topology(name: str) -> tuple[Chip, list[Any]]:
    """Returns the chip and the devices of a topology such as "v5e:2x4".

    Raises:
      UserError: where libtpu is missing or there is no such topology.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    if not match or match.group(1) not in CHIPS:
        raise UserError(f"--topology='{name[:40]}' is not known: there are {EXAMPLES}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the compiler for TPUs, libtpu, is not installed: pip install "
            "'jaxgpt[plan]' (Linux on x86-64)"
        )
    from jax.experimental import topologies

    chip = match.group(1)
    bounds = [int(n) for n in match.group(2).split("x")]
    options: dict[str, Any] = {}
    if all(n == 1 for n in bounds):
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **options
        )
    except Exception as error:  # Of several kinds, by what is wrong.
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"--topology={name} cannot be used ({reason}): there are {EXAMPLES}"
        ) from None
    return CHIPS[chip], list(found.devices)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a training step; bytes are of one chip."""

    memory: dict[str, float]
    traffic: dict[str, Traffic]
    seconds: float
    processor_seconds: float
    kernels: int
    complaint: str = ""


def compile_step(config: ConfigDict, devices: list[Any]) -> tuple[Compiled, int]:
    """Compiles the step that `jaxgpt.train` would run; returns it and its parameters.

    Raises:
      UserError: where the config does not suit the devices.
    """
    import jax
    import numpy as np

    from jaxgpt.model.config import count_parameters
    from jaxgpt.parallel import hlo, sharding
    from jaxgpt.systems.registry import build_system
    from jaxgpt.training import optimizers
    from jaxgpt.training.step import init_state, make_step

    system, optimizer = build_system(config, "tpu"), optimizers.make_optimizer(config)
    shapes = jax.eval_shape(
        lambda key: init_state(
            system.init(key), optimizer, config.optimizer.ema_decay > 0
        ),
        jax.random.key(0),
    )
    layout = sharding.layout(
        shapes,
        optimizer,
        sharding.make_mesh(config, devices),
        config.batch_size,
    )
    state = layout.abstract(shapes)
    tokens = jax.ShapeDtypeStruct(
        (config.batch_size, system.window), np.int32, sharding=layout.rows
    )
    index = jax.ShapeDtypeStruct((), np.int32, sharding=layout.everywhere)
    step = make_step(system, optimizer, layout)
    began, worked = time.perf_counter(), time.process_time()
    lowered = step.trace(state, index, tokens).lower(lowering_platforms=("tpu",))
    kinds = {name: sum(map(_own_bytes, jax.tree.leaves(state[name]))) for name in state}
    memory = {
        "parameters": float(kinds["params"]),
        "optimizer": float(kinds["opt_state"] + kinds.get("ema", 0)),
    }
    parameters = count_parameters(shapes["params"])
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        used = re.search(OUT_OF_MEMORY, text)
        if not used:
            raise UserError(f"the compiler refuses this step: {text[:300]}") from None
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}[used.group(2)]
        memory["activations"] = float(used.group(1)) * unit
        memory["total"] = memory["activations"] + sum(map(float, kinds.values()))
        took = (time.perf_counter() - began, time.process_time() - worked)
        return Compiled(memory, {}, *took, 0, used.group(0)), parameters
    found = program.memory_analysis()
    text = program.as_text()
    memory["activations"] = float(found.temp_size_in_bytes)
    memory["program"] = float(found.generated_code_size_in_bytes)
    memory["total"] = memory["activations"] + memory["program"]
    memory["total"] += float(
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
    )
    took = (time.perf_counter() - began, time.process_time() - worked)
    kernels = text.count('custom_call_target="tpu_custom_call"')
    return Compiled(memory, hlo.collectives(text), *took, kernels), parameters


def _own_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    import math

    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def roofline(
    config: ConfigDict, chip: Chip, chips: int, parameters: int, sent: float
) -> dict[str, float]:
    """Returns seconds a step takes at least for each resource, and what follows.

    Args:
      config: of the run.
      chip: its sheet.
      chips: how many.
      parameters: of the model.
      sent: bytes each chip sends in a step.
    """
    from jaxgpt.model.config import flops_per_token
    from jaxgpt.systems.registry import build_system

    c, m = config, config.model
    system = build_system(config, "tpu")
    tokens = c.batch_size * system.num_predicted
    per_token = flops_per_token(system.model_config, parameters)
    flops = per_token * tokens / chips
    # A moment and a parameter read and written, a gradient too: float32 each.
    own = parameters / (c.mesh.fsdp * c.mesh.tensor)
    weights = 2 * 2 * parameters / c.mesh.tensor * c.accumulation
    kept = ACTIVATION_BYTES * m.n_layer * m.n_embd + 3 * 4 * m.vocab_size
    moved = 32 * own + weights + 2 * kept * tokens / chips
    times = {
        "compute": flops / chip.flops,
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
        "mfu": times["compute"] / best,
        "mfu_without_overlap": times["compute"] / worst,
    }


def advice(config: ConfigDict, chips: int, memory: dict[str, float]) -> str:
    """Returns the setting that lowers the memory of a chip most."""
    held = memory["parameters"] + memory["optimizer"]
    rows = config.batch_size // config.accumulation
    if held > memory["activations"] and config.mesh.fsdp < chips:
        return f"--config.mesh.fsdp={chips} splits parameters and moments"
    if config.model.remat != "full":
        return "--config.model.remat=full keeps no activations within a block"
    if rows > chips:
        return f"--config.accumulation={2 * config.accumulation} halves a batch's rows"
    return "a slice with more chips, and --config.mesh.fsdp as many"


def plan(config: ConfigDict, topology: str) -> dict[str, Any]:
    """Returns everything that the command prints; see `report` for the names.

    Raises:
      UserError: where it cannot be planned.
    """
    from jaxgpt.systems.registry import build_system, system_class

    if config.system == "memory":
        raise UserError(
            "system=memory searches on the host, which no compiler can plan: plan "
            "system=causal of its size"
        )
    chip, devices = open_topology(topology)
    system_class(config.system).resolve(config)
    if not config.model.vocab_size:
        config.model.vocab_size = 1
        config.model.vocab_size = build_system(config).open_data().vocab_size
    compiled, parameters = compile_step(config, devices)
    chips, memory = len(devices), compiled.memory
    sent = sum(traffic.bytes for traffic in compiled.traffic.values())
    limit = chip.memory - RESERVED
    fits = not compiled.complaint and memory["total"] <= limit
    return {
        "topology": topology,
        "chips": chips,
        "parameters": parameters,
        "fits": fits,
        "memory_per_chip": memory,
        "memory_limit": limit,
        "advice": advice(config, chips, memory),
        "collectives": {
            kind: {"count": traffic.count, "bytes": traffic.bytes}
            for kind, traffic in compiled.traffic.items()
        },
        "attention_kernels": compiled.kernels,
        "compile_seconds": compiled.seconds,
        "compile_processor_seconds": compiled.processor_seconds,
        **roofline(config, chip, chips, parameters, sent),
    }


def report(found: dict[str, Any], config: ConfigDict) -> str:
    """Returns the plan for people."""
    gib = 2**30
    m = config.model
    memory = found["memory_per_chip"]
    lines = [
        f"{found['topology']}: {found['chips']} chips, {found['parameters']:,} "
        f"parameters, compiled in {found['compile_seconds']:.0f} s "
        f"({found['compile_processor_seconds']:.0f} s of processor time)",
        "",
        "memory of a chip, GiB",
    ]
    lines += [f"  {name:<12} {size / gib:8.3f}" for name, size in memory.items()]
    verdict = "fits" if found["fits"] else "DOES NOT FIT"
    lines += [
        f"  {'limit':<12} {found['memory_limit'] / gib:8.3f}   {verdict}",
        f"  to use less: {found['advice']}",
        "",
        "FLOPs of a token: 6 N + 12 L D T, N without tables that are looked up, the "
        "causal half",
        f"  of the scores not discounted: L {m.n_layer}, D {m.n_embd}, "
        f"T {m.block_size}: {found['flops_per_token']:.4g}; of a step "
        f"{found['flops_per_step']:.4g}",
        "",
        "collectives of a step, and MB that each chip sends",
    ]
    lines += [
        f"  {kind:<20} {one['count']:6}  {one['bytes'] / 1e6:12.2f}"
        for kind, one in found["collectives"].items()
    ] or ["  none"]
    lines += ["", "a step takes at least, in ms"]
    lines += [
        f"  {name:<12} {found[name + '_seconds'] * 1e3:10.2f}"
        for name in ("compute", "memory", "links")
    ]
    lines += [
        "",
        f"at most {found['tokens_per_second']:,.0f} tokens/s (MFU {found['mfu']:.0%}) "
        "where the three overlap, "
        f"{found['tokens_per_second_without_overlap']:,.0f} "
        f"({found['mfu_without_overlap']:.0%}) where they do not.",
        "Assumed: peak bfloat16 rate, bandwidths and links of the vendor's sheet; "
        "rings over all links;",
        f"{ACTIVATION_BYTES} bytes of activations per token, layer and width, written "
        "and read once; AdamW in float32.",
    ]
    return "\n".join(lines)


def command(argv: list[str]) -> int:
    """Parses arguments and prints the plan."""
    options, overrides = configs.split_overrides(argv)
    parser = cli.Parser("jaxgpt.plan", __doc__, epilog=configs.describe_fields())
    parser.add_argument("--config", required=True, help="configs/NAME.py[:variant]")
    parser.add_argument(
        "--topology", required=True, help=f"chips and their grid: {EXAMPLES}"
    )
    parser.add_json()
    args = parser.parse_args(options)
    config = configs.load(args.config, overrides)
    for name, value in QUIET.items():
        os.environ[name] = value
    cli.set_up_jax()
    import jax

    # Programs for a slice that is not there can be kept, but not be read back.
    jax.config.update("jax_enable_compilation_cache", False)
    found = plan(config, args.topology)
    if args.json:
        cli.print_json(found)
    else:
        print(report(found, config))
    return 0


if __name__ == "__main__":
    cli.main(command)
