"""The server of `wind ui`: a run's pages, live beside the run.

It answers on the loopback behind `flows.guard`, reads the store, and writes notes and nothing else.
"""

import json
from collections.abc import Callable
from typing import Any, Final

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from flows.pages import Link, samples
from flows.pages.glance import glance
from wind.errors import ConfigError, WindError, first_line
from wind.inspection.notes import LONGEST, Note
from wind.inspection.query import Query
from wind.store.datasets import Store
from wind.store.references import find_version
from wind.store.versions import Version, Versions, runs

# A note in JSON, every character of it escaped.
MOST_BYTES: Final = 12 * LONGEST + 1000

Answer = Callable[[Request], Any]


class Pages:
    """The pages and data of the runs of a store."""

    def __init__(self, store: Store, run: str | None = None) -> None:
        """Serve the pages of `store`, first those of `run`.

        Raises ConfigError if there is no such run.
        """
        self._store = store
        self._reader = samples.open_reader(store)
        known = runs(store)
        if run is not None and run not in known:
            raise ConfigError(
                f"no run is called {run!r} in {store.url} (runs: {', '.join(known) or 'none'})"
            )
        self._first = run

    def application(self) -> Starlette:
        """Return the ASGI application."""
        data = {
            "versions": self.versions,
            "prompts": self.prompts,
            "prompt": self.prompt,
            "over": self.over,
            "tokens": self.tokens,
        }
        return Starlette(
            routes=[
                Route("/", self.start),
                Route("/runs/{run}", _page(self.glance)),
                Route("/runs/{run}/samples", _page(self.samples)),
                *(Route(f"/api/{name}", _json(answer)) for name, answer in data.items()),
                Route("/api/note", _json(self.note)),
                Route("/api/note", self.write_note, methods=["PUT"]),
                Route("/api/notes", _jsonl(self.notes)),
            ]
        )

    def start(self, request: Request) -> Response:
        """Lead to the pages of the first run."""
        run = self._first or next(iter(runs(self._store)), None)
        if run is None:
            return Response(
                "There is no version in this store yet: reload this page when there is one.\n",
                media_type="text/plain",
            )
        return RedirectResponse(f"/runs/{run}")

    def glance(self, request: Request) -> bytes:
        """Return the page that shows a run at a glance."""
        run = request.path_params["run"]
        version = find_version(self._store, run)
        return glance(self._store, version, links=self._links(run, f"/runs/{run}"))

    def samples(self, request: Request) -> bytes:
        """Return the page on which samples are read."""
        run = request.path_params["run"]
        here = f"/runs/{run}/samples"
        return samples.page(self._versions(run), self._links(run, here))

    def versions(self, request: Request) -> Any:
        """List the versions of a run."""
        return samples.listed(self._versions(_parameter(request, "run")))

    def prompts(self, request: Request) -> Any:
        """Answer a query."""
        query = Query.of(request.query_params)
        return samples.rows(self._reader.answer(self._version(request), query))

    def prompt(self, request: Request) -> Any:
        """Return everything about a prompt."""
        return samples.prompt(self._reader, self._version(request), _parameter(request, "id"))

    def over(self, request: Request) -> Any:
        """Return one sample over the iterations."""
        sample = _parameter(request, "sample")
        if not (sample.isascii() and sample.isdigit() and len(sample) < 10):
            raise ConfigError(f"sample is {sample!r}: give a number")
        return samples.over_iterations(
            self._reader, self._version(request), _parameter(request, "id"), int(sample)
        )

    def tokens(self, request: Request) -> Any:
        """Return a prompt and its responses with special tokens."""
        return samples.tokens(self._reader, self._version(request), _parameter(request, "id"))

    def note(self, request: Request) -> Any:
        """Return the note on a prompt, an empty one if there is none."""
        prompt_id = _parameter(request, "id")
        found = self._reader.notes(self._version(request).run).all().get(prompt_id)
        return {"flag": False, "note": "", "time": 0} if found is None else found.model_dump()

    async def write_note(self, request: Request) -> Response:
        """Keep a note."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                return _answer({"error": f"a note has {LONGEST} characters at most"}, 413)
        return await run_in_threadpool(
            _json(lambda asked: self._write(asked, bytes(body))), request
        )

    def _write(self, request: Request, body: bytes) -> Any:
        version = self._version(request)
        try:
            given = json.loads(body)
            note = Note.model_validate(given | {"version": samples.name_of(version)})
        except (ValueError, TypeError, ValidationError) as error:
            raise ConfigError(f"this is no note: {first_line(error)}") from error
        self._reader.detail(version, note.prompt_id)
        return self._reader.notes(version.run).write(note).model_dump()

    def notes(self, request: Request) -> str:
        """Return all notes on a run as JSONL."""
        version = self._version(request)
        return "".join(f"{json.dumps(line)}\n" for line in self._reader.noted(version.run))

    def _version(self, request: Request) -> Version:
        return find_version(self._store, _parameter(request, "version"))

    def _versions(self, run: str) -> list[Version]:
        if run not in runs(self._store):
            raise ConfigError(f"no run is called {run!r}")
        return list(Versions(self._store, run))

    def _links(self, run: str, here: str) -> list[Link]:
        pages = [("At a glance", f"/runs/{run}"), ("Samples", f"/runs/{run}/samples")]
        others = [(f"Run {name}", f"/runs/{name}") for name in runs(self._store) if name != run]
        return [Link(title, href, href == here) for title, href in (*pages, *others)]


def _parameter(request: Request, name: str) -> str:
    if not (value := request.query_params.get(name, "")):
        raise ConfigError(f"the parameter {name} is missing")
    return value


def _answer(value: Any, status: int = 200) -> Response:
    # In ASCII: a text may hold halves of characters, which UTF-8 cannot encode.
    return Response(
        json.dumps(value, separators=(",", ":"), allow_nan=False),
        status,
        headers={"cache-control": "no-store"},
        media_type="application/json",
    )


def _json(answer: Answer) -> Callable[[Request], Response]:
    """Answer with JSON; a user's mistake is its field `error`."""

    def answered(request: Request) -> Response:
        try:
            return _answer(answer(request))
        except WindError as error:
            return _answer({"error": str(error)}, 400)

    return answered


def _jsonl(answer: Callable[[Request], str]) -> Callable[[Request], Response]:
    def answered(request: Request) -> Response:
        try:
            return Response(answer(request), media_type="application/x-ndjson")
        except WindError as error:
            return _answer({"error": str(error)}, 400)

    return answered


def _page(answer: Callable[[Request], bytes]) -> Callable[[Request], Response]:
    """Answer with a page; a user's mistake is a line of text."""

    def answered(request: Request) -> Response:
        headers = {"cache-control": "no-store"}
        try:
            return Response(answer(request), headers=headers, media_type="text/html")
        except WindError as error:
            return Response(f"{error}\n", 404, headers=headers, media_type="text/plain")

    return answered
