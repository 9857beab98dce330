"""What a server offers with its bundle, and what of it a visitor wants."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import ValidationError

import mfm_jax
from mfm_jax.bundle import Bundle
from mfm_jax.errors import one_line
from mfm_jax.inference.pipeline import Sampling
from mfm_jax.serve.limits import Limits, Refused
from mfm_jax.serve.schemas import ServerView, SoundSettings

STEPS = (10, 25, 50, 100)
GUIDANCE = tuple(half / 2 for half in range(2, 21))
"""Every pair of these is a program that has to be compiled, so that there are not any numbers."""


class Key(NamedTuple):
    """Windows of one key can be computed in one batch."""

    sampling: Sampling
    reads_text: bool
    candidates: int = 1


@dataclass(frozen=True)
class Offer:
    """The settings that a visitor can choose from."""

    bundle: Bundle
    limits: Limits
    prompts: bool  # whether the bundle reads text
    most_candidates: int

    @property
    def steps(self) -> list[int]:
        """The steps that can be chosen, with those of the bundle."""
        return sorted({*STEPS, self.bundle.settings.steps})

    @property
    def guidance(self) -> list[float]:
        """The scales of guidance that can be chosen, with that of the bundle."""
        return sorted({*GUIDANCE, float(self.bundle.settings.guidance)})

    def settings(self, fields: Mapping[str, str]) -> SoundSettings:
        """Read the settings in the fields of a form; an empty field is left out.

        Raises:
            Refused: a field does not exist or has no such value.
        """
        given = {name: text for name, text in fields.items() if text.strip()}
        try:
            found = SoundSettings.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            told = one_line(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}")
            raise Refused(422, f"{told[:200]} (see /openapi.json)") from None
        self._check(found)
        return found

    def key(self, settings: SoundSettings | None = None) -> Key:
        """Return the key of a job with these settings, or of the bundle's own."""
        settings, own = settings or SoundSettings(), self.bundle.settings
        guidance = own.guidance if settings.guidance is None else settings.guidance
        return Key(
            Sampling(own.sampler, settings.steps or own.steps, float(guidance)),
            settings.prompt is not None or settings.negative_prompt is not None,
            settings.candidates,
        )

    def _check(self, settings: SoundSettings) -> None:
        for name in ("prompt", "negative_prompt"):
            text = getattr(settings, name)
            if text is not None and not self.prompts:
                raise Refused(422, f"this server's bundle reads no text: leave {name} out")
            if len(text or "") > self.limits.prompt:
                raise Refused(422, f"{name} has more than {self.limits.prompt} characters")
        for name, value, known in (
            ("steps", settings.steps, self.steps),
            ("guidance", settings.guidance, self.guidance),
        ):
            if value is not None and value not in known:
                choices = ", ".join(f"{each:g}" for each in known)
                raise Refused(422, f"{name} must be one of {choices}, got {value:g}")
        if settings.candidates > self.most_candidates:
            raise Refused(
                422, f"candidates must be at most {self.most_candidates}, got {settings.candidates}"
            )

    def view(self, unfinished: int) -> ServerView:
        """Return what is told of the server."""
        own, limits = self.bundle.settings, self.limits
        return ServerView(
            version=mfm_jax.__version__,
            bundle=self.bundle.identity,
            prompts=self.prompts,
            steps=self.steps,
            default_steps=own.steps,
            guidance=self.guidance,
            default_guidance=float(own.guidance),
            candidates=self.most_candidates,
            upload_bytes=limits.upload,
            seconds=limits.seconds,
            pixels=limits.pixels,
            prompt_characters=limits.prompt,
            keep_seconds=limits.keep,
            unfinished=unfinished,
            queue=limits.queue,
        )
