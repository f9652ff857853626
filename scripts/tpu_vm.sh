#!/usr/bin/env bash
# A TPU slice from creation to results:
#
#   export TPU=my-slice ZONE=us-west4-a TYPE=v5litepod-16
#   scripts/tpu_vm.sh create
#   scripts/tpu_vm.sh copy        # this folder, to every worker
#   scripts/tpu_vm.sh mount BUCKET    # gs://BUCKET at ~/runs on every worker
#   scripts/tpu_vm.sh run --config=configs/sigma_text.py --workdir=~/runs/sigma_text
#   scripts/tpu_vm.sh log         # what worker 0 says
#   scripts/tpu_vm.sh stop        # SIGTERM: a checkpoint is saved first
#   scripts/tpu_vm.sh fetch RUN   # ~/runs/RUN of worker 0, to runs/RUN here
#   scripts/tpu_vm.sh delete
#
# The same `run` resumes. Checkpoints of several workers need a folder they share.
set -euo pipefail
: "${TPU:?name of the slice}" "${ZONE:?its zone}"
VERSION=${VERSION:-v2-alpha-tpuv5-lite} # v2-alpha-tpuv5 for v5p, v2-alpha-tpuv6e for v6e
SSH=(gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE")
SCP=(gcloud compute tpus tpu-vm scp --zone="$ZONE")

command=${1:?create, copy, mount, run, log, stop, fetch or delete}
shift
case "$command" in
create)
    gcloud compute tpus tpu-vm create "$TPU" --zone="$ZONE" \
        --accelerator-type="${TYPE:?such as v5litepod-16}" --version="$VERSION"
    ;;
copy)
    archive=$(mktemp --suffix=.tar.gz)
    git archive --prefix=jaxgpt/ -o "$archive" HEAD
    "${SCP[@]}" "$archive" "$TPU:jaxgpt.tar.gz" --worker=all
    rm "$archive"
    "${SSH[@]}" --worker=all --command='tar -xzf jaxgpt.tar.gz && cd jaxgpt &&
        python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e ".[tpu]"'
    ;;
mount)
    "${SSH[@]}" --worker=all --command="mkdir -p ~/runs && gcsfuse --implicit-dirs ${1:?a bucket} ~/runs"
    ;;
run)
    # All workers at once: each finds the others by itself.
    "${SSH[@]}" --worker=all --command="cd jaxgpt &&
        nohup .venv/bin/python -m jaxgpt.train $* > ~/train.log 2>&1 < /dev/null &
        echo \$! > ~/train.pid"
    ;;
log)
    "${SSH[@]}" --worker=0 --command='tail -n 50 -f ~/train.log'
    ;;
stop)
    "${SSH[@]}" --worker=all --command='kill -TERM $(cat ~/train.pid)'
    ;;
fetch)
    mkdir -p runs
    "${SCP[@]}" --recurse "$TPU:runs/${1:?name of a run}" runs/ --worker=0
    ;;
delete)
    gcloud compute tpus tpu-vm delete "$TPU" --zone="$ZONE"
    ;;
*)
    echo "error: '$command' is none of create, copy, mount, run, log, stop, fetch, delete" >&2
    exit 2
    ;;
esac
