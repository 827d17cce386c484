"""The keys of algo=eval, which only evaluates."""

from __future__ import annotations

from typing import Annotated, Literal

from agentrl.config.checks import is_web_address
from agentrl.config.key import Group, Holds, key
from agentrl.config.traits import MethodKeys


class Endpoint(Group):
    base_url: Annotated[
        str | None,
        Holds(
            lambda url: url is None or is_web_address(url),
            "must begin with http:// or https:// and name a host, e.g. http://localhost:8000/v1",
        ),
    ] = key("Address of an OpenAI-compatible server that plays the episodes; null loads model.path in this process.")
    api_key_env: str = key(
        "Environment variable that holds the endpoint's key; a server on this machine needs no key.", operational=True
    )
    concurrency: int = key("Number of episodes played at the same time.", ge=1, operational=True)
    timeout: float = key("Seconds that the server may take for one turn.", gt=0, operational=True)
    retries: int = key(
        "Further tries while the server is busy or away (429, 5xx, no connection), with growing pauses.",
        ge=0,
        operational=True,
    )
    history: Literal["structured", "text"] = key(
        "How the calls of earlier turns are sent to the server.",
        means=("as tool_calls", "as text, as Qwen's template writes them"),
    )


class Evaluate(MethodKeys):
    trains = rollouts = False
    wants = "anything"

    endpoint: Endpoint = key("The server of the model, if it is not loaded in this process.")


ALGOS: dict[str, type[MethodKeys]] = {"eval": Evaluate}
