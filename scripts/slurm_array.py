"""Write a Slurm array job that runs a study, one task for each point.

python scripts/slurm_array.py --study=studies/gssm_modes.yaml --output=modes.sbatch
sbatch modes.sbatch
python -m jaxgpt.grid --study=studies/gssm_modes.yaml --gather
"""

from __future__ import annotations

import shlex
import sys

from jaxgpt import cli
from jaxgpt.commands.study import read_study
from jaxgpt.config import user_path
from jaxgpt.errors import UserError

# Training saves a checkpoint at SIGTERM and exits with 143; the task then queues again.
SBATCH = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}{throttle}
#SBATCH --time={time}
#SBATCH --cpus-per-task={cpus}
{gpus}#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={folder}/slurm-%a.out
srun {python} -m jaxgpt.grid --study={study} --workdir={folder} \\
    --point="$SLURM_ARRAY_TASK_ID"
code=$?
if [ "$code" -eq 143 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


def command(argv: list[str]) -> None:
    """Parses arguments and writes the file."""
    parser = cli.Parser("slurm_array", __doc__)
    parser.add_argument("--study", required=True, help="YAML or JSON file")
    parser.add_argument("--workdir", help="default: runs/NAME of the study")
    parser.add_argument("--output", required=True, help="the sbatch file to write")
    parser.add_argument("--time", default="01:00:00", help="of a task (01:00:00)")
    parser.add_argument("--cpus", type=int, default=4, help="of a task (4)")
    parser.add_argument("--gpus", type=int, default=0, help="of a task (0)")
    parser.add_argument("--most", type=int, default=0, help="tasks at once; 0 is all")
    args = parser.parse_args(argv)
    for name, least in (("cpus", 1), ("gpus", 0), ("most", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} is at least {least}: not {getattr(args, name)}")
    study = read_study(args.study)
    folder = user_path(args.workdir or f"runs/{study.name}")
    text = SBATCH.format(
        name=study.name,
        last=len(study.points) - 1,
        throttle=f"%{args.most}" if args.most else "",
        time=args.time,
        cpus=args.cpus,
        gpus=f"#SBATCH --gpus-per-task={args.gpus}\n" if args.gpus else "",
        folder=shlex.quote(str(folder)),
        python=shlex.quote(sys.executable),
        study=shlex.quote(args.study),
    )
    try:
        # Slurm opens the tasks' output before the first of them runs.
        folder.mkdir(parents=True, exist_ok=True)
        user_path(args.output).write_text(text)
    except OSError as error:
        raise UserError(
            f"'{error.filename}' cannot be written: {error.strerror}"
        ) from None
    print(f"{args.output}: {len(study.points)} tasks; start them with sbatch")


if __name__ == "__main__":
    cli.main(command)
