"""A component is bound by the licences of all that it was made of."""

import json
import shutil

import pytest

from mfm_jax.bundle import (
    UNKNOWN,
    Bundle,
    Source,
    combined,
    commercial_use,
    trained_source,
    write_bundle,
)
from mfm_jax.bundle.licences import limits_of_use
from mfm_jax.cli import main
from mfm_jax.storage.paths import TINY_BUNDLE
from tests.bundles import untrained

RELEASED = {
    "cavp": "Apache-2.0",
    "timechat": "BSD-3-Clause",
    "audiomae": "CC-BY-NC-4.0",
    "vocoder": "CC-BY-NC-SA-4.0",
}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    parts = {
        name: (*untrained()[name][:2], Source("python -m convert", licence))
        for name, licence in RELEASED.items()
    }
    return write_bundle(tmp_path_factory.mktemp("released"), parts)


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["CC-BY-NC-SA 4.0"], "CC-BY-NC-SA-4.0"),
        (["cc-by-nc-4.0", "Apache License, Version 2.0"], "Apache-2.0 AND CC-BY-NC-4.0"),
        (["MIT AND Apache-2.0", "Apache-2.0", "(MIT)"], "Apache-2.0 AND MIT"),
        (["CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"], "CC-BY-NC-4.0 AND CC-BY-NC-SA-4.0"),
        (["MIT", ""], f"{UNKNOWN} AND MIT"),
        (["none"], UNKNOWN),
        ([], UNKNOWN),
        (["Studio's terms"], "LicenseRef-Studio-s-terms"),
    ],
)
def test_conjunctions(licences, expected):
    assert combined(licences) == expected
    assert combined([expected]) == expected


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("Apache-2.0", True),
        ("Apache-2.0 AND CC-BY-4.0", True),
        ("CC-BY-NC-4.0 AND Apache-2.0", False),
        (f"CC-BY-NC-SA 4.0 AND {UNKNOWN}", False),
        ("LicenseRef-research-only", False),
        ("LicenseRef-TimeChat-non-commercial", False),
        (f"Apache-2.0 AND {UNKNOWN}", None),
        ("Studio's terms", None),
        ("MIT OR CC-BY-4.0", None),
        ("", None),
    ],
)
def test_commercial_use(licence, allowed):
    assert commercial_use(licence) is allowed


def test_a_mapper_trained_with_non_commercial_networks_is_not_free(released):
    source = trained_source(
        "mfm train",
        bundle=released,
        components=("cavp", "timechat", "audiomae", "gpt2"),
        data_licence="Apache-2.0",
        data="Foley clips",
    )
    assert source.licence == "Apache-2.0 AND BSD-3-Clause AND CC-BY-NC-4.0"
    assert commercial_use(source.licence) is False
    names = ("audiomae", "cavp", "timechat")
    assert source.trained_with == tuple((n, released.entries[n].checksum) for n in names)


def test_data_of_unknown_licence_gives_an_unknown_licence():
    source = trained_source("mfm train", bundle=None, components=("cavp",), data_licence=UNKNOWN)
    assert (source.licence, source.trained_with) == (UNKNOWN, ())
    assert commercial_use(source.licence) is None


def test_the_shipped_bundle_is_free():
    bundle = Bundle.open(TINY_BUNDLE)
    assert combined(e.source.licence for e in bundle.entries.values()) == "Apache-2.0"
    assert limits_of_use(bundle.entries) == (True, [])


def test_what_a_component_was_trained_with_is_written_and_shown(released, tmp_path, capsys):
    source = trained_source(
        "mfm train", bundle=released, components=RELEASED, data_licence="MIT", data="our clips"
    )
    mapper = (*untrained()["mapper"][:2], source)
    bundle = write_bundle(tmp_path, {"mapper": mapper}, base=released.path)
    assert bundle.entries["mapper"].source == source
    assert bundle.damages("mapper") == []
    assert main(["bundle", "show", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "trained with audiomae, cavp, timechat, vocoder on our clips\n" in printed
    assert "commercial use: no (because of audiomae, mapper, vocoder)\n" in printed
    write_bundle(tmp_path, {"vocoder": (*untrained()["vocoder"][:2], Source("tests", "none"))})
    main(["bundle", "show", str(tmp_path)])
    assert "timechat, vocoder (not the one in this bundle) on" in capsys.readouterr().out


def test_a_bundle_without_the_fields_of_training_reads_as_before(tmp_path):
    shutil.copytree(TINY_BUNDLE, tmp_path / "bundle")
    file = tmp_path / "bundle" / "bundle.json"
    data = json.loads(file.read_text())
    for entry in data["components"].values():
        entry["source"] = {k: entry["source"][k] for k in ("made_by", "licence")}
    file.write_text(json.dumps(data))
    source = Bundle.open(tmp_path / "bundle").entries["mapper"].source
    assert (source.trained_with, source.data) == ((), "")
