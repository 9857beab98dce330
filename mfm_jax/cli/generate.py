"""`mfm generate`: videos in, the same videos with sound out."""

import argparse

from mfm_jax.cli import arguments as options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = "Make sound for videos."
    parser.add_argument(
        "videos",
        nargs="+",
        type=options.path,
        metavar="VIDEO",
        help="files, folders, globs, or manifests (.csv or .jsonl with a column 'file' and, as "
        "wanted, start, end, prompt, negative_prompt, seed, output)",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=options.path,
        help="a folder, or FILE.mp4 (.mov, .m4v, .mkv, .webm, .wav, .flac)",
    )
    parser.add_argument(
        "--format",
        help="mp4, mov, m4v, mkv, webm, wav or flac, of files in an output folder; default: mp4",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="make again what the output folder's record says is made of the same video with the "
        "same settings",
    )
    parser.add_argument(
        "--shared",
        action="store_true",
        help="divide the work with others that run the same command with the same output folder, "
        "on any machines; always so where the folder is in an object store",
    )
    parser.add_argument(
        "--on",
        choices=("ray",),
        help="let the machines of a Ray cluster do it, which see the same paths: the running one "
        "(RAY_ADDRESS), or one of this machine alone",
    )
    parser.add_argument(
        "--workers",
        type=options.at_least_one,
        metavar="N",
        help="on Ray: so many; default: as many as the cluster has accelerators for",
    )
    options.add_bundle(parser)
    options.add_verify(parser)
    options.add_sandbox(parser)
    parser.add_argument("--prompt", help="text for the sound wanted (bundles with a text encoder)")
    parser.add_argument("--negative-prompt", help="text for the sound to keep away from")
    parser.add_argument(
        "--negative-sound",
        type=options.path,
        metavar="FILE",
        help="a file with sound to keep away from, for bundles with AudioMAE",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--candidates",
        type=int,
        default=1,
        metavar="N",
        help="make N sounds of each video, and keep the one that fits it best",
    )
    parser.add_argument(
        "--veto",
        default=(),
        metavar="CLASSES",
        help="keep no candidate with speech, singing or music (several: with commas), for bundles "
        "with Cnn14",
    )
    options.add_sampling(parser)
    group = parser.add_argument_group("the sound in the files")
    group.add_argument(
        "--rate", type=int, default=16_000, help="16000 (default), 24000, 44100 or 48000 samples/s"
    )
    group.add_argument(
        "--lufs", type=float, help="integrated loudness, such as -16; default: as it is made"
    )
    group.add_argument(
        "--mix",
        type=float,
        metavar="DB",
        help="add the video's own sound, changed by so many dB, such as -12",
    )
    parser.add_argument(
        "--joint",
        action="store_true",
        help="denoise the windows of a long video together, so that they agree where they overlap; "
        "otherwise they are made alone and cross-faded",
    )
    parser.add_argument(
        "--memory",
        choices=("high", "low"),
        default="high",
        help="low: encoders, mapper and diffusion are on the device one after the other, which "
        "needs less memory and makes the same sounds",
    )
    options.add_computing(parser)
    options.add_programs(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate; return 1 where some videos failed, each named."""
    from mfm_jax.inference.generate import GenerationError, generate
    from mfm_jax.runtime.progress import Progress

    with Progress(None, "clips") as progress:
        try:
            generate(
                args.videos,
                args.output,
                bundle=args.bundle,
                verify=args.verify,
                prompt=args.prompt,
                negative_prompt=args.negative_prompt,
                negative_sound=args.negative_sound,
                seed=args.seed,
                joint=args.joint,
                memory=args.memory,
                format=args.format,
                candidates=args.candidates,
                veto=args.veto,
                rate=args.rate,
                lufs=args.lufs,
                mix=args.mix,
                overwrite=args.overwrite,
                shared=args.shared,
                on=args.on,
                workers=args.workers,
                progress=progress,
                **options.generation(args),
            )
        except GenerationError as error:
            for failure in error.failures:
                progress.say(f"mfm generate: {failure}")
            return error.exit_code
    return 0
