"""Config fields of the device mesh."""

from __future__ import annotations

import dataclasses

from jaxgpt.config import OptionGroup, option


@dataclasses.dataclass(frozen=True)
class MeshConfig(OptionGroup):
    """Devices along each axis; checkpoints have one layout, so a resume may change it.

    What the devices must satisfy is checked by `sharding.make_mesh`, which knows them.
    """

    data: int = option(
        0,
        "devices that split a batch; 0 is all that fsdp and tensor leave",
        min=0,
        resumable=True,
    )
    fsdp: int = option(
        1,
        "devices that split a batch, and parameters and optimizer moments too",
        min=1,
        resumable=True,
    )
    tensor: int = option(
        1,
        "devices that split heads, feed-forwards and the vocabulary",
        min=1,
        resumable=True,
    )
