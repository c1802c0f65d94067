"""Header names that most messages carry, as clients and workers spell them: looked up, not decoded and lowered."""

_NAMES = (
    "accept",
    "accept-encoding",
    "authorization",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "date",
    "host",
    "server",
    "transfer-encoding",
    "user-agent",
    "x-request-id",
)
COMMON_NAMES = {spelling.encode(): name for name in _NAMES for spelling in (name, name.title())}
