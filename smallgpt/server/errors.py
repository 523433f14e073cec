"""Errors as OpenAI's API tells them: {"error": {"message", "type", "param", "code"}}."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
    507: "server_error",
}
_CODES = {401: "invalid_api_key", 429: "queue_full"}
_WRONG_FIELD: Final = "wrong_field"  # of pydantic's errors
_MEANINGS = {
    400: "The request is wrong; `param` says where.",
    401: "The API key is missing or wrong.",
    403: "The Host or Origin header is not allowed.",
    404: "There is no such model or path.",
    405: "The path does not take this method.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "The queue is full; `Retry-After` says when to come back.",
    500: "The server failed.",
    503: "The server is loading or shutting down.",
    504: "The request took longer than the server allows.",
    507: "The disk is full.",
}


class ApiError(Exception):
    """A request that is refused, or a reply that cannot be finished.

    Args:
        message: what is wrong and what to do.
        param: where in the request, such as messages[0].content.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body = {
            "error": {
                "message": message,
                "type": _TYPES.get(status, "invalid_request_error"),
                "param": param,
                "code": code or _CODES.get(status),
            }
        }

    def response(self) -> JSONResponse:
        """What the client is sent."""
        return JSONResponse(self.body, self.status, self.headers)


def queue_full(seconds: int) -> ApiError:
    """As many requests wait as may; there may be room in so many seconds."""
    later = {"Retry-After": str(seconds)}
    return ApiError(429, "The queue is full; try again later.", headers=later)


class ErrorBody(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every answer from 400 on."""

    error: ErrorBody


def wrong_field(name: str, why: str) -> PydanticCustomError:
    """What a check of a whole object raises where one of its fields is wrong."""
    return PydanticCustomError(_WRONG_FIELD, "{why}", {"field": name, "why": why})


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses, for the OpenAPI document."""
    return {
        status: {"model": ErrorResponse, "description": _MEANINGS[status]} for status in statuses
    }


def install(app: FastAPI) -> None:
    """Let the application tell all errors so."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _of_validation(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def no_such_path(request: Request, error: HTTPException) -> JSONResponse:
        message = {
            400: "The body cannot be read: it is not JSON in UTF-8, or is nested too deeply.",
            404: f"There is nothing at {request.url.path}; see /openapi.json for what there is.",
            405: f"{request.url.path} does not take {request.method}.",
        }.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        # The traceback is logged; what failed inside is not the client's business.
        return ApiError(500, "The server failed; its log says why.").response()


def _of_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not JSON: {first.get('ctx', {}).get('error', '')}")
    # Where a field may be of several types, each has errors; those of the one meant are deepest.
    here = [error for error in errors if error["loc"][:2] == first["loc"][:2]]
    error = max(here, key=lambda e: (len(e["loc"]), not e["type"].endswith("_type")))
    param, message = _param(error), error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "There is no such parameter"
    if not param and error["type"] in ("missing", "model_attributes_type"):
        message = 'The body must be a JSON object, sent with "Content-Type: application/json"'
    return ApiError(400, f"{param}: {message}" if param else message, param or None)


def _param(error: Mapping[str, Any]) -> str:
    """Where in the body an error is, such as messages[0].content."""
    param, last = "", len(error["loc"]) - 1
    for number, part in enumerate(error["loc"]):
        if isinstance(part, int):
            param += f"[{part}]"
        elif number and (_is_field(part) or (error["type"], number) == ("extra_forbidden", last)):
            param += f".{part}" if param else part
    inner = error["ctx"]["field"] if error["type"] == _WRONG_FIELD else ""
    return ".".join(filter(None, (param, inner)))


def _is_field(part: str) -> bool:
    """Not which of a field's types it was, such as list[TextPart]."""
    return part.isidentifier() and part not in ("str", "list", "int", "bool")
