"""Devices: their peak rates, and whether JAX found the ones this machine has."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import os
import pathlib
import re

from jaxgpt.errors import UserError, log

# Peak bfloat16 FLOP/s of one device, by a part of JAX's device_kind (vendors' sheets).
# The first match counts: "TPU v5 lite" comes before "TPU v5".
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip, from its vendor's data sheet."""

    flops: float  # bfloat16 FLOP/s
    memory: float  # bytes of HBM
    bandwidth: float  # bytes/s to and from HBM
    links: float  # bytes/s to other chips, over all its links


CHIPS = {
    "v5e": Chip(PEAK_FLOPS["TPU v5 lite"], 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(PEAK_FLOPS["TPU v5"], 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(PEAK_FLOPS["TPU v6 lite"], 32 * 2**30, 1640e9, 448e9),
}
# Those with 80 GB, 80 GB and 141 GB; links are NVLink's, in one direction.
GPUS = {
    "a100": Chip(PEAK_FLOPS["A100"], 80e9, 2039e9, 300e9),
    "h100": Chip(PEAK_FLOPS["H100"], 80e9, 3350e9, 450e9),
    "h200": Chip(PEAK_FLOPS["H200"], 141e9, 4800e9, 450e9),
}
GPUS_OF_A_HOST = 8
# Names of slices of them, and of hosts.
TOPOLOGIES = (
    "v5e:1x1 to v5e:16x16, v6e:1x1 to v6e:16x16, v5p:2x2x1 to v5p:4x8x8, and a100, "
    f"h100 and h200 with :1 to :{GPUS_OF_A_HOST}"
)
NVIDIA = ("/dev/nvidia0", "/dev/nvidiactl")
PCI_DEVICES = "/sys/bus/pci/devices"
# PCI's names of Google and of its TPUs; its network cards have others.
GOOGLE = "0x1ae0"
TPUS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")


def set_environment() -> None:
    """Sets what XLA and matplotlib read when loaded: call before JAX is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # matplotlib warns at length if it has no folder for its cache, and goes on.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    devices = re.search(
        r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    if devices and int(devices[1]) > 1:
        # XLA's pool needs a thread for a callback of every virtual device besides its
        # work: with fewer, an all-reduce waits for a device whose callback waits for a
        # thread, until XLA aborts the process.
        os.environ.setdefault("NPROC", str(2 * int(devices[1]) + 4))


def gpus(topology: str) -> tuple[Chip, int] | None:
    """Returns the GPU and the number of a topology such as "h100:8"; None for others.

    Raises:
      UserError: for a number that no host has.
    """
    kind, _, count = topology.partition(":")
    if kind not in GPUS:
        return None
    known = [str(number + 1) for number in range(GPUS_OF_A_HOST)]
    if count not in known:
        raise UserError(f"unknown --topology='{topology[:40]}': there are {TOPOLOGIES}")
    return GPUS[kind], int(count)


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak bfloat16 FLOP/s of a device, or None if it is unknown."""
    return next((f for name, f in PEAK_FLOPS.items() if name in device_kind), None)


def check_backend(backend: str, devices: str = PCI_DEVICES) -> None:
    """Says what an accelerator lacks, if there is one and JAX fell back to the CPU.

    Args:
      backend: that JAX has chosen.
      devices: the folder of PCI devices.

    Raises:
      UserError: for a TPU, or a GPU that JAX's CUDA plugin cannot use. Without that
        plugin a line on stderr says that the GPU is not used.
    """
    if backend != "cpu" or cpu_requested():
        return
    if has_tpu(devices):
        raise UserError(
            f"this machine has a TPU that JAX cannot use{_owner()}: stop what uses it, "
            "install 'jaxgpt[tpu]', or set JAX_PLATFORMS=cpu to train on the CPU"
        )
    if not has_nvidia():
        return
    plugins = (f"jax_cuda{version}_plugin" for version in (12, 13))
    installed = next(filter(importlib.util.find_spec, plugins), "")
    if installed:
        raise UserError(
            f"this machine has an NVIDIA GPU that JAX cannot use with {installed}: "
            "nvidia-smi must list it, with a driver for that version of CUDA; or set "
            "JAX_PLATFORMS=cpu to compute on the CPU"
        )
    log(
        "note: this machine has an NVIDIA GPU, which is not used: install "
        "'jaxgpt[cuda]' (make train GPU=1), or set JAX_PLATFORMS=cpu"
    )


def has_nvidia() -> bool:
    """Returns whether this machine has an NVIDIA GPU and its kernel module."""
    return any(map(os.path.exists, NVIDIA))


def cpu_requested() -> bool:
    """Returns whether the environment restricts JAX to the CPU."""
    return "cpu" in os.environ.get("JAX_PLATFORMS", "")


def has_tpu(devices: str = PCI_DEVICES) -> bool:
    """Returns whether this machine has a TPU, even if another process uses it."""
    return any(
        vendor.read_text().strip() == GOOGLE
        and vendor.with_name("device").read_text().strip() in TPUS
        for vendor in pathlib.Path(devices).glob("*/vendor")
    )


def only_cpu() -> bool:
    """Returns whether libtpu is installed on a machine without any accelerator.

    JAX would try that library first, which fails slowly and with pages of logs.
    """
    return importlib.util.find_spec("libtpu") is not None and not has_accelerator()


def has_accelerator() -> bool:
    """Returns whether this machine has a TPU or GPU, even one that JAX cannot use."""
    return has_tpu() or any(map(os.path.exists, (*NVIDIA, "/dev/dxg", "/dev/kfd")))


def _owner() -> str:
    """Returns " (process N has it)" if that can be seen."""
    for link in pathlib.Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link).startswith(("/dev/accel", "/dev/vfio/")):
                return f" (process {link.parts[2]} has it)"
    return ""
