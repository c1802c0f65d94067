"""The error tree. Each error says what is wrong and what to do next.

BaseloadError
├── Refusal              a request was not taken, with a reason from the closed set `Reason`
├── SettingsError        a settings file, flag or environment variable is wrong
├── ModelError           a model directory cannot be served
│   ├── UnsupportedArchitecture
│   └── BadWeights       a file is corrupt, or a tensor is missing or of the wrong shape
├── DataError            training data or a workload file is wrong
│   └── MissingFigure    a question needs a figure that the catalogue leaves blank
├── CheckpointError      a checkpoint cannot be written or read
├── JournalError         the journal cannot be opened, read or written
├── WorkerError          a worker could not be started or answered wrongly
├── SamplingFailed       a row of logits gives no token; its request fails (in engine/sampling.py)
├── NetError             a peer could not be reached, went away, or did not answer in time
└── ControlError         the control process cannot be reached or refused an administration call
"""

from enum import StrEnum


class BaseloadError(Exception):
    """The root: `message` says what is wrong, `hint` what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class Reason(StrEnum):
    """Why a request was refused or ended badly. A closed set; it stands in the journal and in metrics."""

    BAD_JSON = "bad_json"
    BAD_REQUEST = "bad_request"
    TOO_LARGE = "too_large"
    CONTEXT_TOO_LONG = "context_length_exceeded"
    NO_KEY = "no_key"
    WRONG_KEY = "invalid_api_key"
    FORBIDDEN = "forbidden"
    UNKNOWN_ROUTE = "unknown_url"
    UNKNOWN_MODEL = "model_not_found"
    RATE_LIMITED = "rate_limit_exceeded"
    TOO_MANY_IN_FLIGHT = "too_many_in_flight"
    QUEUE_FULL = "queue_full"
    DEADLINE = "deadline_exceeded"
    MODEL_UNAVAILABLE = "model_unavailable"
    WORKER_LOST = "worker_lost"
    WORKER_ERROR = "worker_error"
    MODEL_REMOVED = "model_removed"
    SHUTTING_DOWN = "shutting_down"
    CONTROL_RESTARTED = "control_restarted"
    CLIENT_GONE = "client_gone"
    JOURNAL_UNAVAILABLE = "journal_unavailable"


class Refusal(BaseloadError):
    """A request was not taken. `param` names the field at fault; `retry_after_ns` > 0 invites a later try."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        hint: str = "",
        param: str | None = None,
        retry_after_ns: int = 0,
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.param = param
        self.retry_after_ns = retry_after_ns


class SettingsError(BaseloadError):
    """A settings file, flag or environment variable is wrong."""


class ModelError(BaseloadError):
    """A model directory cannot be served."""


class UnsupportedArchitecture(ModelError):
    """The architecture in config.json is not one of ours; the message names it and lists those supported."""


class BadWeights(ModelError):
    """A weights file is corrupt, or a tensor is missing or misshapen; the message names file and tensor."""


class DataError(BaseloadError):
    """Training data or a workload file is wrong; the message names file and line."""


class MissingFigure(DataError):
    """A question needs `figure` of `owner`, and no source worth trusting gave it; the hint says where to add it."""

    def __init__(self, figure: str, owner: str, *, hint: str = "") -> None:
        super().__init__(
            f"The catalogue has no {figure} for {owner}: no source worth trusting was found.",
            hint=hint or "Add it in your own catalogue TOML (docs/catalogue.md).",
        )
        self.figure = figure
        self.owner = owner


class CheckpointError(BaseloadError):
    """A checkpoint cannot be written or read."""


class JournalError(BaseloadError):
    """The journal cannot be opened, read or written."""


class WorkerError(BaseloadError):
    """A worker could not be started, or answered wrongly."""


class NetError(BaseloadError):
    """A peer could not be reached, went away, or did not answer in time."""


class ControlError(BaseloadError):
    """The control process cannot be reached, or refused an administration call."""
