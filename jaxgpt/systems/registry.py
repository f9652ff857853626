"""Every system by the name it has in `config.system`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

if TYPE_CHECKING:
    # Config fields list the systems, and --help the fields: no JAX at import.
    from jaxgpt.systems.base import System

SYSTEMS = {
    "sigma": "jaxgpt.systems.sigma.system:SigmaGPT",
    "sigma-task": "jaxgpt.systems.sigma.tasks.system:SigmaTask",
    "masked-diffusion": "jaxgpt.systems.diffusion.system:MaskedDiffusion",
    "causal": "jaxgpt.systems.causal:CausalLM",
    "gssm": "jaxgpt.systems.gssm.system:GSSM",
    "memory": "jaxgpt.systems.memory.system:MemoryLM",
}
# What a system reads, known without loading it: any order, left to right, or whole
# texts with some tokens masked.
ANY_ORDER = ("sigma", "sigma-task")
LEFT_TO_RIGHT = ("causal", "gssm", "memory")
MASKED = ("masked-diffusion",)


def system_of(group: str) -> str:
    """Returns the name of the system that a group of config fields belongs to."""
    return "masked-diffusion" if group == "diffusion" else group


def system_class(name: str) -> type[System]:
    """Returns the class of a system."""
    module, name = SYSTEMS[name].split(":")
    return getattr(importlib.import_module(module), name)


def build_system(config: ConfigDict, platform: str = "") -> System:
    """Returns the system that `config.system` names, for a platform or this one's."""
    return system_class(config.system)(config, platform)
