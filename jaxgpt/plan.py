r"""Does a config fit a TPU slice or GPUs, and how fast can it run? Needs only a CPU.

python -m jaxgpt.plan --config=configs/sigma_text.py --topology=v5e:4x4
python -m jaxgpt.plan --config=configs/sigma_text.py --topology=h100:8
python -m jaxgpt.plan --config=configs/sigma_text.py --topology=v5e:4x4 \
    --config.mesh.fsdp=16 --config.model.remat=full --json=-
"""

from __future__ import annotations

import os

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.parallel.hardware import TOPOLOGIES, gpus

# Without these libtpu looks for a TPU, and leaves logs and a lock file behind.
ENVIRONMENT = {
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

# Config fields that --help shows.
COMMON = (
    *("batch_size", "accumulation", "mesh.data", "mesh.fsdp", "mesh.tensor"),
    *("model.n_layer", "model.n_head", "model.n_embd", "model.block_size"),
    *("model.dtype", "model.remat"),
)


def command(argv: list[str]) -> int:
    """Parses arguments and prints the plan."""
    options, overrides = cli.split_overrides(argv)
    parser = cli.Parser("jaxgpt.plan", __doc__, configs.options(), COMMON)
    parser.add_argument("--config", required=True, help=cli.CONFIG)
    parser.add_argument(
        "--topology", required=True, help=f"chip type and grid: {TOPOLOGIES}"
    )
    parser.add_json()
    args = parser.parse_args(options)
    config = configs.load(args.config, overrides)
    os.environ |= ENVIRONMENT
    if found := gpus(args.topology):
        devices = f"--xla_force_host_platform_device_count={found[1]}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}"
    # JAX takes seconds, which --help does not need; it reads the environment once.
    from jaxgpt.commands.plan import execute

    return execute(args, config)


if __name__ == "__main__":
    cli.main(command)
