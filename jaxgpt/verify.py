"""Are a run's checkpoints as they were saved? Exit code 1 if one is damaged.

python -m jaxgpt.verify --workdir=runs/sigma_char
"""

from __future__ import annotations

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.training import manifest


def command(argv: list[str]) -> int:
    """Checks every file of every checkpoint and prints a line per checkpoint."""
    parser = cli.Parser("jaxgpt.verify", __doc__)
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_json()
    args = parser.parse_args(argv)
    workdir = configs.user_path(args.workdir)
    config = configs.load_frozen(workdir)
    folder = workdir / "checkpoints"
    steps = manifest.steps(folder)
    old = [step for step in steps if not manifest.belongs_to(folder / str(step))]
    damaged: dict[str, str] = {}
    if old or not steps:
        # Only old checkpoints need JAX, which takes seconds, to read their arrays.
        from jaxgpt.commands.verify import damaged_arrays

        damaged |= damaged_arrays(config, workdir, old)
    for step in steps:
        name, intact = str(step), "intact"  # Text, as JSON's keys are.
        if step in old:
            intact = "intact as to its arrays (it has no manifest of its files)"
        elif wrong := manifest.differences(folder / name):
            damaged[name] = "; ".join(wrong)
        if not args.json:
            print(f"checkpoint {step}: {damaged.get(name, intact)}", flush=True)
    if args.json:
        found = {"checkpoints": steps, "damaged": damaged, "without_manifest": old}
        cli.print_json(found)
    return 1 if damaged else 0


if __name__ == "__main__":
    cli.main(command)
