"""The embedded miniature from nothing: Foley clips, every frozen network, the mapper, one bundle.

    python scripts/make_tiny_bundle.py [--workdir runs/tiny] [--target mfm_jax/bundles/tiny]

Each stage is one `train.py` run and goes on where it was stopped. The target holds the weights in
float16 and is replaced as a whole at the end.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from jax import numpy as jnp

from mfm_jax.bundle import Bundle, write_bundle
from mfm_jax.paths import TINY_BUNDLE, new_folder

ROOT = Path(__file__).parents[1]
STAGES = ("audiomae", "vae", "cavp", "vocoder", "timechat", "unet")
"""In this order: the UNet learns from features of AudioMAE and the VAE, the mapper from all."""


def run_stage(config: str, workdir: Path, stage: Path) -> None:
    """One training run; its networks, clips and caches lie in folders of `workdir`."""
    places = [f"--config.recipe.bundle={workdir / 'bundle'}"]
    places.append(f"--config.recipe.clips={workdir / 'clips'}")
    if config not in ("tiny", "tiny_unet"):
        places.append(f"--config.recipe.media={workdir / 'media'}")
    command = [sys.executable, "train.py", "--config", f"configs/{config}.py"]
    subprocess.run([*command, "--workdir", str(stage), *places], cwd=ROOT, check=True)


def pack(trained: Path, target: Path) -> None:
    """Write the float16 copy of a trained bundle to `target`, in place of what is there."""
    bundle = Bundle.open(trained)
    components = {
        name: (entry.config, bundle.load(name), entry.source)
        for name, entry in bundle.entries.items()
    }
    with new_folder(target.with_name(f"{target.name}.new")) as folder:
        write_bundle(folder, components, settings=bundle.settings, dtype=jnp.float16)
    shutil.rmtree(target, ignore_errors=True)
    target.with_name(f"{target.name}.new").rename(target)


def main() -> None:
    """Run every stage, then pack."""
    parser = argparse.ArgumentParser(description="Make the embedded miniature from nothing.")
    parser.add_argument("--workdir", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--target", type=Path, default=TINY_BUNDLE)
    args = parser.parse_args()
    for name in STAGES:
        run_stage(f"tiny_{name}", args.workdir, args.workdir / name)
    run_stage("tiny", args.workdir, args.workdir / "mapper")
    pack(args.workdir / "mapper", args.target)


if __name__ == "__main__":
    main()
