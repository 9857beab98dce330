"""Licences of the released weights, as SPDX expressions."""

from collections.abc import Mapping

AUDIOLDM2 = "CC-BY-NC-SA-4.0"
AUDIOMAE = "CC-BY-NC-4.0"
CAVP = "Apache-2.0"
CNN14 = "CC-BY-4.0"
FLAN_T5 = "Apache-2.0"
GPT2 = "MIT"
SYNCHFORMER = "MIT"
# The code is under the BSD licence; the "Term of Use" of TimeChat's README allows no more than
# non-commercial research.
TIMECHAT = "BSD-3-Clause AND LicenseRef-TimeChat-non-commercial"

LICENCE = "license"
"""The key of a config.json that states the licence of the weights beside it."""


def stated(licence: str | None, config: Mapping, released: str) -> str:
    """Return what the user says, else what the weights' `config` says, else `released`."""
    told = config.get(LICENCE)
    return licence or (told if isinstance(told, str) and told else released)
