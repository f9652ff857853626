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
    "causal": "jaxgpt.systems.causal:CausalLM",
    "gssm": "jaxgpt.systems.gssm.system:GSSM",
    "memory": "jaxgpt.systems.memory.system:MemoryLM",
}
# Which of them read in any order, and which left to right: known before one is loaded.
ANY_ORDER = ("sigma", "sigma-task")
LEFT_TO_RIGHT = ("causal", "gssm", "memory")


def system_class(name: str) -> type[System]:
    """Returns the class of a system."""
    module, name = SYSTEMS[name].split(":")
    return getattr(importlib.import_module(module), name)


def build_system(config: ConfigDict, platform: str = "") -> System:
    """Returns the system that `config.system` names, for a platform or this one's."""
    return system_class(config.system)(config, platform)
