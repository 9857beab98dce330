#!/bin/sh
# Build the sdist and the wheel, install the wheel in a new environment, and run its commands in an
# empty folder.
#
#     scripts/check_dist.sh [FOLDER]
#
# dist/ gets both files, the wheel built from the sdist as an index's users may do. FOLDER gets
# venv/ and empty/ (the output of the commands). By default it is a temporary folder that is removed
# at the end. An existing venv/ is used again. PYTHON is the python of a development environment,
# whose transformers makes a small GPT-2 to convert. This takes minutes, most of them for pip.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=$(cd "$root" && realpath -s "${PYTHON:-.venv/bin/python}")
if [ $# -gt 0 ]; then
    mkdir -p "$1"
    folder=$(realpath "$1")
else
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi

echo "== build"
rm -rf "$root/dist" "$folder/empty"
"$python" -m build --outdir "$root/dist" "$root" > "$folder/build.log" 2>&1 || { cat "$folder/build.log"; exit 1; }
ls -l "$root/dist"
"$python" "$root/scripts/compare_dist.py" "$root/dist"

test -x "$folder/venv/bin/python" || "$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip uninstall --quiet --disable-pip-version-check --yes mfm-jax 2> /dev/null
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$root"/dist/*.whl
# Nothing of the checkout can be imported from here.
mkdir "$folder/empty"
cd "$folder/empty"
unset PYTHONPATH
mfm="$folder/venv/bin/mfm"

echo "== mfm demo, generate, bundle show"
"$mfm" --version
"$mfm" demo -o demo
"$mfm" generate demo/silent.mp4 -o sound.wav --steps 4
"$folder/venv/bin/python" -c 'import mfm_jax; mfm_jax.generate("demo/silent.mp4", "sound.mp4", steps=4)'

echo "== mfm convert"
"$python" - <<'EOF'
from transformers import GPT2Config, GPT2Model

sizes = {"vocab_size": 11, "n_positions": 17, "n_embd": 24, "n_layer": 2, "n_head": 3}
GPT2Model(GPT2Config(**sizes)).save_pretrained("gpt2")
EOF
"$mfm" convert gpt2 gpt2 -o bundle --precision bfloat16
"$mfm" bundle show bundle
"$mfm" convert gpt2 bundle -o back --to torch

echo "== mfm train"
"$mfm" train --config tiny --workdir run --set steps=2 batch=2 log_every=1 \
    recipe.source.train=4 recipe.source.heldout=2
"$mfm" bundle verify run
"$mfm" generate demo/silent.mp4 --bundle run -o trained.mp4 --steps 4

echo "== mfm miniature"
"$mfm" miniature -h > /dev/null
"$mfm" miniature report 2> report.txt && exit 1
cat report.txt
test "$(wc -l < report.txt)" = 1
"$mfm" miniature train 2> train.txt && exit 1
cat train.txt
test "$(wc -l < train.txt)" = 1

if "$folder/venv/bin/python" -c 'import convert' 2> /dev/null; then
    echo "the wheel has put a module named convert into the environment" >&2
    exit 1
fi
ls sound.wav sound.mp4 trained.mp4 back/model.safetensors
echo "the sdist and the wheel work"
