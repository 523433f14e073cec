"""The application: all paths, and what stands before them."""

import asyncio
import mimetypes
import secrets
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

import smallgpt
from smallgpt.server import completions, errors, models
from smallgpt.server.connection import until_disconnected
from smallgpt.server.errors import ApiError, documented
from smallgpt.server.guard import Guard
from smallgpt.server.protocol import (
    LONGEST_EXPLAINED,
    MOST_EXPLAINED,
    ClassifyRequest,
    ClassifyResponse,
    ClassifyUsage,
    FeedbackRequest,
)
from smallgpt.server.replies import broken_off
from smallgpt.server.service import Service, unknown_model

PAGE = Path(__file__).with_name("page")


class Health(BaseModel):
    """Whether requests are taken in, and what the page must know before it asks for a key."""

    status: Literal["loading", "ok", "draining", "failed", "ended"]
    feedback: bool
    key_required: bool
    chat: str
    classifier: str | None


def application(
    service: Service, hosts: Collection[str] = (), origins: Sequence[str] = ()
) -> ASGIApp:
    """All that `smallgpt serve` answers; arguments as of `Guard`."""
    guarded: ASGIApp = Guard(_api(service), service, hosts, origins)
    if not origins:
        return guarded
    # Any header: OpenAI's library sends several of its own. No cookie is ever needed.
    return CORSMiddleware(guarded, origins, ["GET", "POST"], ["*"], expose_headers=["Retry-After"])


def _api(service: Service) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.engine.stop()

    # FastAPI's own pages of documentation load scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    errors.install(app)
    app.include_router(completions.router)
    app.add_api_route("/v1/models", list_models, responses=documented(401, 403, 405))
    app.add_api_route(
        "/v1/models/{name}", model_card, responses=documented(400, 401, 403, 404, 405)
    )
    app.add_api_route(
        "/v1/classify",
        classify,
        methods=["POST"],
        response_model_exclude_none=True,
        responses=documented(400, 401, 403, 404, 408, 413, 429, 500, 503, 504),
    )
    app.add_api_route(
        "/v1/feedback",
        feedback,
        methods=["POST"],
        status_code=204,
        responses=documented(400, 401, 403, 404, 408, 413, 507),
    )
    app.add_api_route("/health", health, responses={503: {"model": Health}, **documented(403)})
    app.add_api_route("/metrics", metrics, include_in_schema=False)
    app.add_api_route("/", page, methods=["GET", "HEAD"], include_in_schema=False)
    # What monitors ask.
    app.add_api_route("/health", health, methods=["HEAD"], include_in_schema=False)
    # Windows may say that it is text/plain, which browsers do not run.
    mimetypes.add_type("text/javascript", ".js")
    app.mount("/page", StaticFiles(directory=PAGE))
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document; a wrong request is answered 400 here, not FastAPI's 422."""
    if app.openapi_schema is None:
        description = "An API like OpenAI's for a model trained with Small GPT."
        document = get_openapi(
            title="Small GPT",
            version=smallgpt.__version__,
            description=description,
            routes=app.routes,
        )
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema


async def list_models(request: Request) -> models.Models:
    """The models that are served."""
    return models.Models(data=models.served(Service.of(request)))


async def model_card(name: str, request: Request) -> models.ModelCard:
    """A model, what it is like, and how its training went."""
    service = Service.of(request)
    if name == service.name:
        return await asyncio.to_thread(models.chat_card, service)
    if service.classifier and name == service.classifier.name:
        return await asyncio.to_thread(models.classifier_card, service)
    raise unknown_model(name, [model.id for model in models.served(service)])


async def classify(wanted: ClassifyRequest, request: Request) -> ClassifyResponse:
    """Judge texts, such as reviews; with `explain`, say which characters speak for the label."""
    service = Service.of(request)
    thread = service.classifier
    if thread is None:
        raise ApiError(404, "No classifier is served; start with --classifier.", "model")
    if wanted.model not in (None, thread.name):
        raise unknown_model(str(wanted.model), [thread.name])
    service.check_ready()
    if wanted.explain and not (
        len(wanted.texts) <= MOST_EXPLAINED
        and max(map(len, wanted.texts), default=0) <= LONGEST_EXPLAINED
    ):
        message = f"input: at most {MOST_EXPLAINED} texts of {LONGEST_EXPLAINED} characters each "
        raise ApiError(400, message + "are explained at a time", "input")
    work = thread.classify(wanted.texts, bool(wanted.explain))
    try:
        async with asyncio.timeout(service.limits.seconds):
            verdicts = await until_disconnected(request.receive, work)
    except TimeoutError:
        raise broken_off("time_limit") from None
    tokens = await asyncio.to_thread(thread.tokens, wanted.texts)
    return ClassifyResponse(
        id=f"classify-{secrets.token_hex(12)}",
        created=int(time.time()),
        model=thread.name,
        data=verdicts,
        labels=thread.predictor.names,
        usage=ClassifyUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


async def feedback(wanted: FeedbackRequest, request: Request) -> Response:
    """Write down what somebody thinks of the last message."""
    service = Service.of(request)
    service.chat_model(wanted.model)
    if service.feedback is None:
        raise ApiError(404, "Feedback is not wanted here; start with --feedback FILE.")
    if wanted.messages[-1].role != "assistant":
        number = len(wanted.messages) - 1
        param = f"messages[{number}].role"
        raise ApiError(400, f"{param}: the last message is not a reply", param)
    given = (wanted.model, wanted.messages, wanted.verdict, wanted.correction)
    try:
        await asyncio.to_thread(service.feedback.append, *given)
    except OSError as error:
        raise ApiError(507, f"The feedback cannot be written: {error.strerror or error}.") from None
    return Response(status_code=204)


async def health(request: Request) -> Response:
    """200 where requests are taken in, else 503."""
    service = Service.of(request)
    state = Health(
        status=service.engine.state,
        feedback=service.feedback is not None,
        key_required=bool(service.key),
        chat=service.name,
        classifier=service.classifier.name if service.classifier else None,
    )
    status = 200 if state.status == "ok" else 503
    return JSONResponse(state.model_dump(), status, {"Cache-Control": "no-store"})


async def metrics(request: Request) -> Response:
    """For Prometheus."""
    text = Service.of(request).metrics.text()
    return Response(text, media_type=CONTENT_TYPE_LATEST)


async def page(request: Request) -> Response:
    """The page."""
    return FileResponse(PAGE / "index.html")
