"""The JSON of the API: what a visitor asks for, and what is answered. FastAPI documents it."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from mfm_jax.runtime.seeds import SEEDS


class SoundSettings(BaseModel):
    """The settings of a sound. What is left out is as the server's bundle says."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    prompt: str | None = Field(default=None, description="text for the sound wanted")
    negative_prompt: str | None = Field(
        default=None, description="text for the sound to keep away from"
    )
    seed: int = Field(default=0, ge=0, lt=SEEDS, description="another seed makes another sound")
    steps: int | None = Field(
        default=None, description="of the sampler: one of those that /api names"
    )
    guidance: float | None = Field(
        default=None, description="scale of classifier-free guidance: one of those that /api names"
    )
    candidates: int = Field(
        default=1,
        ge=1,
        description="sounds to make, of which the one is kept that fits the video best",
    )


class State(StrEnum):
    """The states of a job; the last three are final."""

    queued = "queued"
    running = "running"
    done = "done"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def is_final(self) -> bool:
        """True if nothing more will happen."""
        return self not in (State.queued, State.running)


class JobView(BaseModel):
    """A job as its owner sees it. Whoever knows its `id` is its owner."""

    id: str = Field(description="128 random bits; keep them to yourself")
    state: State
    position: int = Field(description="place in the queue, from 1; 0 if it does not wait there")
    stage: str = Field(description="waiting, compiling, decoding, generating, writing, or empty")
    progress: float = Field(description="from 0 to 1")
    name: str = Field(description="of the uploaded file")
    seconds: float = Field(description="length of the video")
    has_sound: bool = Field(description="True if the video has a sound of its own")
    settings: SoundSettings
    error: str | None = Field(default=None, description="why it failed, and what to do")
    notes: list[str] = Field(default=[], description="what is other than one might expect")
    created: float = Field(description="seconds since 1970")
    expires: float | None = Field(default=None, description="when its files go, once it is over")
    files: dict[str, str] = Field(default={}, description="paths on this server, once it is done")


class Sound(BaseModel):
    """A sound of a finished job."""

    name: str
    rate: int = Field(description="samples per second")
    seconds: float
    onsets: list[float] = Field(description="in seconds, as librosa detects them (delta 0.3)")
    loudness: float | None = Field(description="integrated, in LUFS; null if it is silent")
    sound: str = Field(description="path of its WAV file")
    picture: str = Field(description="path of its spectrogram, a PNG")


class Analysis(BaseModel):
    """The onsets of a finished job: of the new sound, and of the video's own if it has one."""

    seconds: float
    sounds: list[Sound]


class ServerView(BaseModel):
    """The settings that the server offers, and its limits."""

    version: str
    bundle: str = Field(description="SHA-256 of the bundle")
    prompts: bool = Field(description="True if the bundle reads text")
    steps: list[int]
    default_steps: int
    guidance: list[float]
    default_guidance: float
    candidates: int = Field(description="the most that can be asked for")
    upload_bytes: int
    seconds: float = Field(description="the longest video")
    pixels: int = Field(description="the largest frame")
    prompt_characters: int
    keep_seconds: float
    unfinished: int = Field(description="jobs that wait or run")
    queue: int = Field(description="the most of these")


class Problem(BaseModel):
    """Why a request is refused, in one line that says what to do."""

    detail: str
