"""Are a run's checkpoints what was saved? Exit code 1 if one is damaged.

python -m jaxgpt.verify --workdir=runs/sigma_char
"""

from __future__ import annotations

from jaxgpt import cli


def command(argv: list[str]) -> int:
    """Checks every digest of every checkpoint and prints a line per checkpoint."""
    parser = cli.Parser("jaxgpt.verify", __doc__)
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_json()
    args = parser.parse_args(argv)
    cli.set_up_jax()
    import jax

    from jaxgpt import config as configs
    from jaxgpt.systems.registry import build_system
    from jaxgpt.training import optimizers
    from jaxgpt.training.checkpoint import Checkpoints, DamagedError
    from jaxgpt.training.step import fresh_state

    workdir = configs.user_path(args.workdir)
    config = configs.load_frozen(workdir)
    cli.use_float64(config.model.dtype)
    system = build_system(config)
    optimizer = optimizers.make_optimizer(config)
    abstract = jax.eval_shape(
        lambda key: fresh_state(system, optimizer, key), jax.random.key(0)
    )
    checkpoints = Checkpoints(workdir, read_only=True)
    checkpoints.pick("last")  # Refuses a run without checkpoints.
    damaged = {}
    for step in checkpoints.steps():
        try:
            checkpoints.restore(step, abstract, with_host=True)
        except DamagedError as error:
            damaged[str(step)] = str(error)  # Text, as JSON's keys are.
        if not args.json:
            print(f"checkpoint {step}: {damaged.get(str(step), 'intact')}")
    if args.json:
        cli.print_json({"checkpoints": checkpoints.steps(), "damaged": damaged})
    return 1 if damaged else 0


if __name__ == "__main__":
    cli.main(command)
