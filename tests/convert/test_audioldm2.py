"""AudioLDM 2 as diffusers and transformers save it, at small size."""

import json
import shutil
from dataclasses import replace

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from jax import numpy as jnp
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from convert.__main__ import main
from mfm_jax.bundle import Bundle, write_bundle
from mfm_jax.cli import main as mfm
from mfm_jax.mapper import Stream
from mfm_jax.media.write import write_frames
from tests.bundles import CONFIGS, SETTINGS, untrained
from tests.randomise import randomise

LOA, TEXT = CONFIGS["mapper"].loa_width, 24
UNET = {
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "attention_head_dim": [2, 4],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": [[None, LOA, TEXT]] * 2,
}
FOLDERS = ("unet", "vae", "vocoder", "text_encoder_2", "language_model", "projection_model")


def parts() -> dict:
    """Return their networks by folder, with no weight at its initial value."""
    torch.manual_seed(0)
    unet = diffusers.AudioLDM2UNet2DConditionModel(**UNET)
    vae = diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 12, 16),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
        scaling_factor=0.37,
    )
    vocoder = transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(
            model_in_dim=64,
            upsample_initial_channel=32,
            upsample_rates=[5, 4, 2, 2, 2],
            upsample_kernel_sizes=[16, 16, 8, 4, 4],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1]],
            normalize_before=False,
        )
    )
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=40,
            d_model=TEXT,
            d_kv=8,
            d_ff=40,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
    language = transformers.GPT2Model(
        transformers.GPT2Config(
            vocab_size=13,
            n_positions=160,
            n_embd=LOA,
            n_layer=2,
            n_head=4,
            max_new_tokens=8,
            attn_implementation="eager",
        )
    )
    networks = [unet, vae, vocoder, t5, language, diffusers.AudioLDM2ProjectionModel(16, TEXT, LOA)]
    # Small enough that a loop of eight steps does not blow up the rounding of each.
    return {n: randomise(m.eval(), 0, 0.1) for n, m in zip(FOLDERS, networks, strict=True)}


def save_tokenizer(folder) -> None:
    """Save a tokenizer of words that ends every text with token 1, as T5's does."""
    words = ["<pad>", "</s>", "<unk>", "a", "drum", "and", "rain"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def theirs():
    return parts()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    top = tmp_path_factory.mktemp("audioldm2")
    for name, network in theirs.items():
        network.save_pretrained(top / name)
    diffusers.DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(top / "scheduler")
    save_tokenizer(top / "tokenizer_2")
    return top


@pytest.fixture(scope="module")
def bundle(folder, tmp_path_factory):
    """AudioLDM 2 among tiny video encoders and a tiny mapper."""
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    ours = {name: untrained()[name] for name in ("cavp", "timechat", "audiomae", "mapper")}
    write_bundle(path, ours, settings=replace(SETTINGS, steps=2))
    assert main(["audioldm2", str(folder), "-o", str(path)]) == 0
    return Bundle.open(path)


@pytest.fixture(scope="module")
def exported(bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "audioldm2"
    assert main(["audioldm2", str(bundle.path), "-o", str(out), "--to", "torch"]) == 0
    return out


def test_everything_that_generation_needs_is_there(bundle):
    assert set(bundle.entries) >= {"unet", "vae", "vocoder", "t5", "text", "sequence"}
    assert bundle.config("vae").scaling_factor == 0.37
    assert bundle.config("unet").heads == (2, 4)
    assert bundle.settings.schedule.prediction == "epsilon"
    assert bundle.settings.frames == SETTINGS.frames, "only the schedule is AudioLDM 2's"
    assert all(bundle.damages(name) == [] for name in bundle.entries)


def test_each_part_has_its_licence(bundle):
    licences = {name: entry.source.licence for name, entry in bundle.entries.items()}
    assert licences["unet"] == licences["sequence"] == "CC-BY-NC-SA-4.0"
    assert licences["t5"] == licences["text"] == "Apache-2.0"
    files = [bundle.entries[name].source.files for name in ("t5", "text")]
    assert files[0] == files[1]


@pytest.mark.parametrize("part", FOLDERS)
def test_what_goes_out_is_what_came_in(folder, exported, part):
    before, after = (
        load_file(next((top / part).glob("*.safetensors"))) for top in (folder, exported)
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert torch.equal(tensor, after[name]), name


@pytest.mark.parametrize("part", FOLDERS)
def test_the_libraries_load_what_goes_out(theirs, exported, part):
    """No weight is missing or newly initialised by the library."""
    original = theirs[part].state_dict()
    loaded = type(theirs[part]).from_pretrained(exported / part).state_dict()
    assert loaded.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(loaded[name], tensor), name


def test_the_scheduler_and_the_tokenizer_go_out(folder, exported):
    before, after = (
        diffusers.DDIMScheduler.from_pretrained(top / "scheduler") for top in (folder, exported)
    )
    np.testing.assert_array_equal(before.alphas_cumprod, after.alphas_cumprod)
    assert {k: v for k, v in after.config.items() if not k.startswith("_")} == {
        k: v for k, v in before.config.items() if not k.startswith("_")
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported / "tokenizer_2")
    assert tokenizer("a drum and rain").input_ids == [3, 4, 5, 6, 1]


@pytest.mark.parity
def test_the_state_of_no_text(theirs, bundle, parity):
    """It is computed block by block, without all of T5 in memory."""
    with torch.no_grad():
        expected = theirs["text_encoder_2"](torch.tensor([[1]])).last_hidden_state[0].numpy()
    states = bundle.load("text").states[...]
    parity('T5 of "", block by block', "transformers T5EncoderModel", states, expected, 1e-4)


@pytest.mark.parity
def test_text_to_loa(theirs, bundle, parity):
    """`sequence` against their two networks, in the loop of their pipeline."""
    rng = np.random.default_rng(3)
    clap, t5 = (rng.standard_normal(s, np.float32) for s in ((2, 1, 16), (2, 5, TEXT)))
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    projection, gpt2 = theirs["projection_model"], theirs["language_model"]
    with torch.no_grad():
        packed = projection(
            hidden_states=torch.tensor(clap),
            hidden_states_1=torch.tensor(t5),
            attention_mask=torch.ones(2, 1, dtype=torch.long),
            attention_mask_1=torch.tensor(mask.astype(np.int64)),
        )
        embeds, seen = packed.hidden_states, packed.attention_mask
        for _ in range(8):
            hidden = gpt2(inputs_embeds=embeds, attention_mask=seen).last_hidden_state[:, -1:]
            embeds = torch.cat([embeds, hidden], 1)
            seen = torch.cat([seen, torch.ones(2, 1, dtype=seen.dtype)], 1)
    streams = {
        "clap": Stream(jnp.asarray(clap), jnp.zeros((2, 1))),
        "t5": Stream(jnp.asarray(t5), jnp.zeros((2, 5)), jnp.asarray(mask)),
    }
    result = jax.jit(lambda network, s: network.generate(s))(bundle.load("sequence"), streams)
    parity("AudioLDM 2 text to LOA", "diffusers and transformers", result, embeds[:, -8:], 1e-4)


def test_it_makes_sound_with_and_without_a_prompt(bundle, tmp_path, capsys):
    """The only test where the text branch, T5, its tokenizer and the pipeline all meet."""
    frames = np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), np.uint8)
    write_frames(frames, tmp_path / "clip.mp4", fps=10)
    common = ["generate", str(tmp_path / "clip.mp4"), "--bundle", str(bundle.path), "--batch", "1"]
    sounds = {}
    for name, options in {
        "none": [],
        "drum": ["--prompt", "a drum"],
        "not": ["--prompt", "a drum", "--negative-prompt", "rain"],
    }.items():
        out = tmp_path / f"{name}.wav"
        assert mfm([*common, "-o", str(out), *options]) == 0, capsys.readouterr().err
        sounds[name] = out.read_bytes()
    assert len(set(sounds.values())) == 3


def test_parts_can_be_chosen(folder, tmp_path, capsys):
    assert main(["audioldm2", str(folder), "-o", str(tmp_path / "b"), "--only", "vae"]) == 0
    assert set(Bundle.open(tmp_path / "b").entries) == {"vae"}
    assert main(["audioldm2", str(folder), "-o", str(tmp_path / "b"), "--only", "clap"]) == 2
    assert "--only is of unet, vae, vocoder, t5, sequence, not 'clap'" in capsys.readouterr().err


def test_a_scale_that_the_file_does_not_give_is_not_guessed(folder, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(folder / "vae", copy / "vae")
    said = json.loads((folder / "vae" / "config.json").read_text())
    (copy / "vae" / "config.json").write_text(json.dumps(said | {"scaling_factor": None}))
    assert main(["audioldm2", str(copy), "-o", str(tmp_path / "b"), "--only", "vae"]) == 2
    printed = capsys.readouterr().err
    assert "vae config: scaling_factor" in printed
    assert printed.count("\n") == 1
