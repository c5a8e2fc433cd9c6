"""HTTP endpoints that a recipe names: where they are, and how they may be asked.

None of this determines content, and none of it is kept in a spec or a manifest. An API key is in an
environment variable, of which a recipe has the name.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field

from wind.config.base import Section
from wind.redaction import is_secret_name

_URL: Final = re.compile(r"https?://[^\s/?#@\\]+(/[^\s?#@\\]*)?")


def _checked_url(url: str) -> str:
    # a recorded recipe has an empty one
    if url and not _URL.fullmatch(url):
        raise ValueError(
            "it must be an address such as http://localhost:8000/v1, without a query, a user name "
            "or a password: api_key_variable names the variable that holds a key"
        )
    return url.rstrip("/")


def _checked_variable(name: str) -> str:
    if not is_secret_name(name):
        raise ValueError(
            "it must be the name of an environment variable that is known to hold a secret, and "
            "so kept out of logs, such as JUDGE_API_KEY"
        )
    return name


Url = Annotated[str, AfterValidator(_checked_url)]
SecretVariable = Annotated[
    str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), AfterValidator(_checked_variable)
]


# that an endpoint may take to say what it serves
IDENTITY_SECONDS: Final = 20.0


class Connection(Section):
    """How an endpoint is reached, and how much may be asked of it."""

    urls: tuple[str, ...]
    timeout: float
    retry_seconds: float
    concurrency: int
    requests_per_minute: float | None
    api_key_variable: str | None
    batch_size: int = 1
    input_price: float = 0.0
    output_price: float = 0.0
    max_cost: float | None = None
    # whether its times are those of `for_identity`, which no setting raises
    asks_identity: bool = False

    def is_alone(self) -> bool:
        """Return whether one process at a time may ask, so that a limit holds for all of them."""
        return self.requests_per_minute is not None or self.max_cost is not None

    def for_identity(self) -> Self:
        """Return the same connection for asking what it leads to, before a run is planned.

        An answer may take IDENTITY_SECONDS at most, retries included.
        """
        times = {"timeout": self.timeout, "retry_seconds": self.retry_seconds}
        shorter = {name: min(given, IDENTITY_SECONDS) for name, given in times.items()}
        return self.model_copy(update={**shorter, "asks_identity": True})


# The settings of every endpoint that do not determine content.
ENDPOINT_SETTINGS: Final = frozenset(
    {"url", "timeout", "retry_seconds", "concurrency", "requests_per_minute", "api_key_variable"}
)


class EndpointSettings(Section):
    """The settings of a section that names an endpoint."""

    # the address, or those of several replicas of one model
    url: Url | tuple[Url, ...]
    # seconds for one request
    timeout: float = Field(120.0, gt=0)
    # for how many seconds a request that failed is tried again
    retry_seconds: float = Field(600.0, gt=0)
    # requests under way at a time, in each process
    concurrency: int = Field(16, ge=1, le=1024)
    requests_per_minute: float | None = Field(None, gt=0)
    # the environment variable that holds the key
    api_key_variable: SecretVariable | None = None

    def connection(self) -> Connection:
        """Return these settings as workers get them."""
        given: Mapping[str, object] = dict(self)
        urls = (self.url,) if isinstance(self.url, str) else self.url
        known = {name: given[name] for name in Connection.model_fields if name in given}
        return Connection.model_validate({"urls": urls, **known})
