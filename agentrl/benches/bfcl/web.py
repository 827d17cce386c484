"""Web search without the web: replays the hops that BFCL's gold answers name. This is not official.


A search returns the sub-question, URL and answer of every hop, best match first. A page holds the answer of its hop. So
episodes can be played anywhere, but they do not test how to find the right query and how to read real pages.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from agentrl.benches.bfcl.data import Entry
from agentrl.benches.bfcl.environment import ERROR


class RecordedSearch:
    """The two functions of the official WebSearchAPI, on the hops of one item."""

    def __init__(self, entry: Entry) -> None:
        self._hops = [hop for hop in entry.source if isinstance(hop, dict)]
        self._snippets = bool(entry.initial_config["WebSearchAPI"]["show_snippet"])

    def execute(self, name: str, arguments: dict[str, Any]) -> str:
        """Return the result as the official code writes it. A wrong argument gives an error text."""
        functions: dict[str, Callable[..., Any]] = {
            "search_engine_query": self._search,
            "fetch_url_content": self._fetch,
        }
        try:
            result = functions[name](**arguments)
        except (TypeError, ValueError) as error:
            return f"{ERROR}{error}"
        return json.dumps(result) if isinstance(result, dict) else str(result)

    def _search(
        self, keywords: str, max_results: int | None = 10, region: str | None = "wt-wt"
    ) -> list[dict[str, str]]:
        asked = set(str(keywords).lower().split())
        ranked = sorted(self._hops, key=lambda hop: -len(asked & set(hop["subquestion"].lower().split())))
        results = [{"title": hop["subquestion"], "href": hop["source"], "body": hop["answer"]} for hop in ranked]
        shown = results if self._snippets else [{k: v for k, v in r.items() if k != "body"} for r in results]
        return shown[:max_results]

    def _fetch(self, url: str, mode: str = "raw") -> dict[str, str]:
        if not str(url).startswith(("http://", "https://")):
            raise ValueError(f"Invalid URL: {url}")
        for hop in self._hops:
            if hop["source"] == url:
                return {"content": f"{hop['subquestion']}: {hop['answer']}"}
        return {"error": f"An error occurred while fetching {url}: it is not part of the recording"}
