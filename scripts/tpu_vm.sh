#!/usr/bin/env bash
# Train on every host of a TPU slice made with `gcloud compute tpus tpu-vm create`.
#
#   scripts/tpu_vm.sh NAME ZONE --config configs/base.py --workdir gs://BUCKET/runs/base
#
# The checkout lies in ~/mfm-mapper on each host, with its environment in .venv and `jax[tpu]` in it.
# All hosts see --workdir and the features: a bucket mounted with gcsfuse, or NFS.
# SIGTERM, which a host gets before it is taken away, saves on all hosts at the same step; the same
# command goes on from there, also on a slice of another size.
set -euo pipefail
if (($# < 2)); then
    echo "usage: $0 NAME ZONE ARGUMENTS-OF-train.py" >&2
    exit 2
fi
name=$1 zone=$2
shift 2
exec gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command \
    "cd ~/mfm-mapper && .venv/bin/python train.py --distributed $(printf '%q ' "$@")"
