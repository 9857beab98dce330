"""Configs travel through JSON unchanged, and overrides are typed by the field."""

import dataclasses
import json
from dataclasses import dataclass

import pytest

from mfm_jax.errors import SettingError
from mfm_jax.models.audiomae import AudioMAEConfig
from mfm_jax.models.cavp import CAVPConfig
from mfm_jax.models.timechat import TimeChatConfig
from mfm_jax.models.unet import UNetConfig
from mfm_jax.models.vae import VAEConfig
from mfm_jax.models.vocoder import VocoderConfig
from mfm_jax.runtime.config import from_json, override, to_json


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    name: str | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner
    sizes: tuple[int, ...] = (1, 2)
    on: bool = False


CONFIGS = [
    AudioMAEConfig.base(),
    CAVPConfig.diff_foley(),
    TimeChatConfig.tiny(),
    UNetConfig.audioldm2_large((4, 8, 12, 20)),
    VAEConfig.tiny(),
    VocoderConfig.audioldm2(),
    Outer(Inner(name="x"), ()),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_there_and_back_through_json(config):
    assert from_json(type(config), json.loads(json.dumps(to_json(config)))) == config


def test_overrides_reach_nested_fields_in_their_types():
    changed = override(
        Outer(Inner()), ["inner.rate=2", "inner.name=metal", "sizes=[3,4,5]", "on=true"]
    )
    assert changed == Outer(Inner(2.0, "metal"), (3, 4, 5), True)
    assert isinstance(changed.inner.rate, float)
    assert override(changed, ["inner.name=null"]).inner.name is None


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("inner.speed=1", "inner.speed: Inner has no field 'speed'; it has rate, name"),
        ("inner.rate=fast", "inner.rate should be float, not 'fast'"),
        ("on=1", "on should be bool, not 1"),
        ("sizes=[1,x]", r"sizes should be a list, not '\[1,x\]'"),
        ("sizes=[1,2.5]", r"sizes\[1\] should be int, not 2.5"),
        ("inner.rate.x=1", "inner.rate.x: 0.5 has no fields"),
        ("on", "'on' is not of the form field.field=value"),
        ("sizes=" + "[" * 100_000, r"sizes should be a list, not '\[{76}\.\.\.$"),
        ("inner.rate=" + "9" * 5000, r"inner.rate should be float, not '9{76}\.\.\.$"),
    ],
)
def test_wrong_overrides_are_one_line(assignment, message):
    with pytest.raises(SettingError, match=message):
        override(Outer(Inner()), [assignment])


def test_a_field_without_default_is_missed():
    data = to_json(Outer(Inner()))
    del data["inner"]
    with pytest.raises(SettingError, match="missing 1 required positional argument: 'inner'"):
        from_json(Outer, data)


def test_every_value_is_checked_when_read():
    data = dataclasses.asdict(Outer(Inner())) | {"sizes": [1, "2"]}
    with pytest.raises(SettingError, match=r"config.sizes\[1\] should be int, not '2'"):
        from_json(Outer, data)
