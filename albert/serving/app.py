"""The addresses of the service."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from albert import __version__
from albert.search.index import Index
from albert.serving import pages
from albert.serving.abilities import Ability, Limits, Prepared, Refused, abilities_of
from albert.serving.backend import Backend
from albert.serving.batching import Batcher, QueueFull
from albert.serving.guard import Guard, refusal
from albert.serving.metrics import CONTENT_TYPE, Metrics
from albert.serving.search import search_ability

_PAGES = ("/", "/docs", "/openapi.json", "/health", "/metrics")
# What is shown without a token: it says what the model can do, and nothing that it has seen.
_OPEN = ("/", "/docs", "/openapi.json", "/health")
_TOLD = 3  # mistakes in a request that are named
# Of the seconds of a request so many may be spent in the queue, by what batches took lately.
_SHARE = 0.25
_GONE = 499  # as other servers count it: nobody gets it


def make_app(
    backend: Backend,
    limits: Limits,
    window: float = 0.005,
    token: str | None = None,
    index: Index | None = None,
) -> ASGIApp:
    """The service as an ASGI app; its batches are computed until its lifespan ends.

    Args:
      backend: the model.
      limits: of requests.
      window: seconds that a row waits for others.
      token: that requests must bear; None: requests of this machine are taken.
      index: of sentences that may be searched, with the model's vectors; None: none.

    Raises SearchError where the index is of another model, or the model is not asked for vectors.
    """
    card = backend.card
    everything = abilities_of(card, limits)
    searching = [] if index is None else [search_ability(index, backend, limits)]
    everything += searching
    more_pages = tuple(ability.path for ability in searching)  # each has a page to ask it
    served = [ability for ability in everything if ability.name in card.abilities]
    batcher = Batcher(
        backend,
        window,
        limits.queue,
        _SHARE * limits.seconds,
        lambda batch: metrics.count_batch(batch),
    )
    metrics = Metrics(lambda: batcher.waiting, limits.queue)
    # Reads and writes texts, so that who is only asked whether it is well answers at once.
    texts = ThreadPoolExecutor(2, "texts")

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)
        texts.shutdown()

    app = FastAPI(
        title="ALBERT",
        description=f"What {card.name} says of texts.",
        version=__version__,
        docs_url=None,  # FastAPI's own pages load their programs from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    for ability in everything:
        if ability in served:
            call = _endpoint(ability, backend, batcher, limits, texts)
            app.post(
                ability.path,
                response_model=ability.answer,
                summary=ability.summary,
                responses=_errors(),
                openapi_extra=_example(ability),
            )(call)
        else:
            app.post(ability.path, include_in_schema=False)(_lacking(ability, served))

    @app.get("/health", summary="Say whether the service is well.")
    async def health(response: Response) -> dict[str, Any]:
        if not batcher.is_running:
            response.status_code = 503
        return {
            "status": "ok" if batcher.is_running else "stopping",
            "model": card.name,
            "abilities": [ability.path for ability in served],
            "waiting": batcher.waiting,
        }

    @app.get("/metrics", summary="What was counted, for Prometheus.", response_class=Response)
    async def counted() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def home(request: Request) -> HTMLResponse:
        base = str(request.base_url).rstrip("/")
        return pages.respond(pages.index(card, served, base, token is not None))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return pages.respond(pages.reference(app.openapi()))

    if index is not None:

        @app.get("/search", include_in_schema=False)
        async def search_page() -> HTMLResponse:
            return pages.respond(pages.search(card, len(index), token is not None))

    @app.exception_handler(RequestValidationError)
    async def not_as_described(request: Request, error: Exception) -> Response:
        return _sentences(cast(RequestValidationError, error).errors())

    @app.exception_handler(HTTPException)
    async def not_there(request: Request, raised: Exception) -> Response:
        error = cast(HTTPException, raised)
        sentence = str(error.detail)
        if error.status_code == 404:
            paths = ", ".join([*(f"POST {each.path}" for each in served), *_PAGES, *more_pages])
            sentence = f"There is no {request.url.path}; there are {paths}."
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "POST")
            sentence = f"{request.url.path} takes {allowed} and not {request.method}."
        elif error.status_code == 400:
            sentence = "The body cannot be read as JSON in UTF-8."
        response = refusal(error.status_code, sentence)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return refusal(
            500, f"The service failed with {type(error).__name__}; its log says more of it."
        )

    return Guard(
        app,
        limits,
        token,
        # Everything that may wait and be computed, and some that are read or written meanwhile.
        limits.queue + 2 * backend.shapes.full,
        [*_PAGES, *(ability.path for ability in everything)],
        [*_OPEN, *more_pages],
        metrics,
    )


def _endpoint(
    ability: Ability,
    backend: Backend,
    batcher: Batcher,
    limits: Limits,
    texts: ThreadPoolExecutor,
) -> Callable[..., Any]:
    """What is called with a request that is as its schema says."""

    async def call(body: Any, request: Request) -> Any:
        loop = asyncio.get_running_loop()
        gone = asyncio.ensure_future(_disconnected(request))
        computed: asyncio.Future | None = None
        try:
            async with asyncio.timeout(limits.seconds):
                batcher.check_room()  # before anything is done for nothing
                prepared = await loop.run_in_executor(texts, _rows, ability, body, backend)
                if len(prepared.rows) > limits.queue:
                    raise Refused(
                        422,
                        f"This needs {len(prepared.rows):,} rows of the model, and "
                        f"{limits.queue:,} is the most that can wait; send less at once.",
                    )
                computed = asyncio.wrap_future(batcher.submit(ability.name, prepared.rows))
                await asyncio.wait({computed, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not computed.done():
                    return Response(status_code=_GONE)
                return await loop.run_in_executor(texts, prepared.answer, computed.result())
        except QueueFull as full:
            return refusal(
                429,
                f"{full.waiting:,} rows wait, and no more can be answered in time; try again in "
                f"about {full.retry_after} s.",
                Retry_After=str(full.retry_after),
            )
        except Refused as error:
            return refusal(error.status, f"{error}")
        except TimeoutError:
            return refusal(
                504,
                f"There was no answer within {limits.seconds:g} s, so the request is given up; the "
                "service has much to do, or the text is long.",
            )
        finally:
            gone.cancel()
            if computed is not None:
                computed.cancel()  # takes what still waits out of the queue

    call.__annotations__["body"] = ability.request
    call.__name__ = ability.name
    return call


def _rows(ability: Ability, body: Any, backend: Backend) -> Prepared:
    """The request as rows; raises Refused where it has none."""
    try:
        return ability.prepare(body, backend.card)
    except ValueError as error:  # of a text that cannot be read so
        raise Refused(422, f"{error}") from error


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _lacking(ability: Ability, served: Sequence[Ability]) -> Callable[..., Any]:
    """What is called where the model lacks the ability."""

    async def call() -> Response:
        can = ", ".join(each.path for each in served)
        return refusal(
            409,
            f"This model was not trained for {ability.path}; it has {can}. docs/finetuning.md says "
            "how to train one that has it.",
        )

    return call


def _errors() -> dict[int | str, dict[str, Any]]:
    """What may come instead of an answer, for the schema."""
    form = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string", "description": "A sentence."}},
    }
    said = {
        400: "The body is not JSON.",
        401: "The token is missing or wrong.",
        408: "The body did not arrive in time.",
        409: "The model has no vocabulary.",
        413: "The body is too large.",
        415: "The body's type is not application/json.",
        422: "The request is not as described here.",
        429: "There is too much to do; Retry-After says when to try again.",
        504: "There was no answer in time.",
    }
    return {
        status: {"description": text, "content": {"application/json": {"schema": form}}}
        for status, text in said.items()
    }


def _example(ability: Ability) -> dict[str, Any]:
    return {"requestBody": {"content": {"application/json": {"example": ability.example}}}}


def _sentences(errors: Sequence[Any]) -> Response:
    """Of mistakes that pydantic has found."""
    for error in errors:
        if error["type"] == "json_invalid":
            why, place = error["ctx"]["error"], error["loc"][-1]
            return refusal(400, f"The body is not JSON: {why} at character {place}.")
    told = []
    for error in errors[:_TOLD]:
        where = " ".join(str(part) for part in error["loc"][1:])
        if not where:
            told.append("the body must be a JSON object")
        elif error["type"] == "missing":
            told.append(f"{where} is missing")
        elif error["type"] == "extra_forbidden":
            told.append(f"there is no field {where}")
        else:
            told.append(f"{where}: {error['msg'][:1].lower()}{error['msg'][1:]}")
    more = f"; and {len(errors) - _TOLD:,} more" if len(errors) > _TOLD else ""
    return refusal(422, f"{'; '.join(told)}{more}. /docs says what is taken.")
