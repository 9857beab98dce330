#!/usr/bin/env bash
# Train on a GKE cluster of TPUs that was made with `xpk cluster create`.
#
#   scripts/xpk.sh CLUSTER TYPE IMAGE --config configs/base.py --workdir /data/runs/base
#
# TYPE is a slice such as v5litepod-256; set SLICES=2 for two of them. The working directory of IMAGE
# must be a checkout. All pods must see the storage with --workdir and the features.
set -euo pipefail
if (($# < 3)); then
    echo "usage: $0 CLUSTER TYPE IMAGE ARGUMENTS-OF-train.py" >&2
    exit 2
fi
cluster=$1 type=$2 image=$3
shift 3
exec xpk workload create --cluster "$cluster" --tpu-type "$type" --num-slices "${SLICES:-1}" \
    --workload "mfm-$(date +%m%d-%H%M%S)" --docker-image "$image" --max-restarts 100 \
    --command "python train.py --distributed $(printf '%q ' "$@")"
