#!/usr/bin/env bash
# Train on every host of a TPU slice made with `gcloud compute tpus tpu-vm create`.
#
#   scripts/tpu_vm.sh NAME ZONE --config configs/base.py --workdir gs://BUCKET/runs/base
#
# Every host needs a checkout in ~/mfm-mapper, with an environment in .venv that has `jax[tpu]`.
# All hosts must see --workdir and the features: on gs://BUCKET (`mfm-jax[gs]`) or on NFS.
# A host gets SIGTERM before it is preempted. All hosts then save at the same step, and the same
# command resumes, also on a slice of another size.
set -euo pipefail
if (($# < 2)); then
    echo "usage: $0 NAME ZONE ARGUMENTS-OF-train.py" >&2
    exit 2
fi
name=$1 zone=$2
shift 2
exec gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command \
    "cd ~/mfm-mapper && .venv/bin/python train.py --distributed $(printf '%q ' "$@")"
