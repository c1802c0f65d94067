"""What is served: a model, how it scales, and what its seconds cost."""

from msgspec import Struct

from baseload.domain.units import NS_PER_MS, NS_PER_S


class Scaling(Struct, frozen=True, forbid_unknown_fields=True):
    """How many replicas, and when more or fewer. Times in nanoseconds."""

    min_replicas: int = 0
    max_replicas: int = 1
    idle_ns: int = 300 * NS_PER_S  # asleep after so long without a request (down to min_replicas)
    target_queue_delay_ns: int = 500 * NS_PER_MS  # scale up when the oldest waits longer than this
    target_kv_usage: float = 0.85  # or when the mean KV use of its replicas stays above this
    scale_up_cooldown_ns: int = 10 * NS_PER_S
    start_timeout_ns: int = 600 * NS_PER_S  # a start longer than this is a crash
    drain_timeout_ns: int = 600 * NS_PER_S  # longest a running request is waited for on scale-down
    requests_per_s: float = 0.0  # what one replica carries within its service levels; 0: not known
    scale_down_ns: int = 30 * NS_PER_S  # with that known: fewer replicas once they were enough for so long
    prompt_tokens_per_s: float = 0.0  # instead: what one replica would carry of prompts alone; 0: not known
    output_tokens_per_s: float = 0.0  # and of answers alone; 0: answers take nothing that prompts do not


class Admission(Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on what waits and runs for one model."""

    max_queue: int = 1024  # requests held in the router; one more is refused with queue_full
    max_wait_ns: int = 120 * NS_PER_S  # longest in the router's queue; then deadline_exceeded
    max_concurrency_per_replica: int = 64  # dispatched to one replica at a time; the rest waits in the router
    max_attempts: int = 3  # dispatches of one request; only before its first byte was sent


GUESS_WORDS = ("off", "prompt")  # what `EngineSpec.guess` may say besides the path of a draft model


class EngineSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of our own engine for one model. 0 means: choose from the machine and the model."""

    dtype: str = "auto"  # "auto" | "float32" | "bfloat16"
    deterministic: bool = False  # in bfloat16: tokens independent of batch-mates, at a measured cost
    max_seqs: int = 32  # sequences decoded together
    max_step_tokens: int = 512  # tokens in one engine step: prefill chunks plus decodes
    kv_cache_bytes: int = 0
    block_tokens: int = 16
    max_context: int = 0
    max_waiting: int = 256  # bound of the worker's own queue
    prefix_cache: bool = True
    threads: int = 0
    kernels: str = "auto"  # "auto" | "xla" | "avx2" | "avx512vnni" | "avx512" | "amx": native code, or XLA alone
    kv_dtype: str = "auto"  # "auto": as computed in | "int8": with a scale per position and head
    ttft_target_ns: int = (
        0  # a prompt is due so long after its arrival: who is due first comes in first; 0: no target
    )
    tpot_target_ns: int = 0  # pace of an answer: prompts take of each step only what leaves it so; 0: no target
    priority_ttft_target_ns: int = 0  # of requests with service_tier "priority"; 0: as the others
    priority_tpot_target_ns: int = 0
    flex_ttft_target_ns: int = 0  # of requests with service_tier "flex"; 0: none, they wait for others
    flex_tpot_target_ns: int = 0
    guess: str = "off"  # "off" | "prompt" | directory of a draft model with the same vocabulary
    guess_tokens: int = 4  # guessed ahead at most; fewer or none where they do not pay

    @property
    def draft(self) -> str:
        """The path of the draft model; empty where there is none."""
        return "" if self.guess in GUESS_WORDS or not self.guess_tokens else self.guess


class Price(Struct, frozen=True, forbid_unknown_fields=True):
    """What one replica costs and draws. Power is used only where no meter can be read (`modelled`)."""

    usd_per_hour: float = 0.10
    busy_w: float = 30.0
    idle_w: float = 5.0


class Remote(Struct, frozen=True, forbid_unknown_fields=True):
    """How a worker that somebody else runs is reached. No secret stands here: this is journaled and shown."""

    secret: str = ""  # the name of the worker's API key, which `baseload up` finds in its environment or data folder
    ca_file: str = ""  # certificates to trust besides the system's, for https


class ModelSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """A model under the name clients use.

    `source` is a Hugging Face directory for our own engine, or an http:// URL of any worker that speaks the
    OpenAI API; such a worker is always on and is never started or stopped by us.
    """

    name: str
    source: str
    scaling: Scaling = Scaling()
    admission: Admission = Admission()
    engine: EngineSpec = EngineSpec()
    price: Price = Price()
    context_tokens: int = 0  # filled from config.json when the model is added; 0: unknown
    remote: Remote = Remote()

    @property
    def is_remote(self) -> bool:
        """Whether `source` is a URL of a worker that somebody else runs."""
        return self.source.startswith(("http://", "https://"))
