#!/usr/bin/env bash
#SBATCH --job-name=mfm-generate
#SBATCH --array=0-7
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
# Make sound for many videos with eight workers of one GPU each, which divide the work:
#
#   sbatch scripts/slurm_array.sh /shared/clips.csv -o /shared/out --bundle /shared/bundle
#
# All nodes must see the videos, the bundle and the folder of outputs, on a shared disk or in a
# store. A task that Slurm stops and starts again goes on; its pieces are free meanwhile.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?sbatch this script from the checkout}"
exec .venv/bin/mfm generate --shared "$@"
