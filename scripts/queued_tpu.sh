#!/usr/bin/env bash
# Make sound for many videos with queued TPU VMs, which divide the work as they come and go:
#
#   scripts/queued_tpu.sh 8 ZONE v5litepod-4 IMAGE gs://BUCKET/clips.csv -o gs://BUCKET/out
#
# IMAGE is built with docker/Dockerfile.tpu and is in a registry that the VMs may read. The default
# service account needs read and write access to the bucket. Set RUNTIME for chips other than v5e.
# Afterwards delete each with `gcloud compute tpus queued-resources delete NAME --force`.
set -euo pipefail
if (($# < 5)); then
    echo "usage: $0 WORKERS ZONE TYPE IMAGE ARGUMENTS-OF-mfm-generate" >&2
    exit 2
fi
workers=$1 zone=$2 type=$3 image=$4
shift 4
script=$(mktemp)
trap 'rm -f "$script"' EXIT
{
    echo "#!/bin/bash"
    echo "docker run --rm --privileged --net=host $(printf '%q ' "$image" generate "$@")"
} > "$script"
for ((i = 0; i < workers; i++)); do
    name="mfm-$(date +%m%d-%H%M%S)-$i"
    gcloud compute tpus queued-resources create "$name" --node-id "$name" --zone "$zone" \
        --accelerator-type "$type" --runtime-version "${RUNTIME:-v2-alpha-tpuv5-lite}" --spot \
        --scopes https://www.googleapis.com/auth/cloud-platform \
        --metadata-from-file "startup-script=$script"
done
