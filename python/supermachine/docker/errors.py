"""What goes wrong, as Docker's API says it: a status and ``{"message": …}``."""

from __future__ import annotations

from http import HTTPStatus

from .. import errors


class ApiError(Exception):
    """An answer other than success. `message` is what the client shows."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = int(status)
        self.message = message


class BadRequest(ApiError):
    def __init__(self, message: str) -> None:
        super().__init__(HTTPStatus.BAD_REQUEST, message)


class NotFound(ApiError):
    def __init__(self, message: str) -> None:
        super().__init__(HTTPStatus.NOT_FOUND, message)


class Conflict(ApiError):
    def __init__(self, message: str) -> None:
        super().__init__(HTTPStatus.CONFLICT, message)


class NotModified(ApiError):
    """What was asked for is so already."""

    def __init__(self) -> None:
        super().__init__(HTTPStatus.NOT_MODIFIED, "")


class NotImplementedHere(ApiError):
    def __init__(self, message: str) -> None:
        super().__init__(HTTPStatus.NOT_IMPLEMENTED, message)


_STATUSES: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (errors.ImageNotFound, HTTPStatus.NOT_FOUND),
    (errors.PlatformNotFound, HTTPStatus.NOT_FOUND),
    (errors.RegistryUnauthorized, HTTPStatus.UNAUTHORIZED),
    (errors.NotSupported, HTTPStatus.NOT_IMPLEMENTED),
    (errors.ShareNotFound, HTTPStatus.BAD_REQUEST),
    (errors.PortUnavailable, HTTPStatus.INTERNAL_SERVER_ERROR),
    (errors.ConfigurationError, HTTPStatus.BAD_REQUEST),
    (errors.InvalidArchive, HTTPStatus.BAD_REQUEST),
    (errors.InvalidReference, HTTPStatus.BAD_REQUEST),
)


def as_api_error(error: BaseException) -> ApiError:
    """Any error as an answer."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, errors.SupermachineError):
        text = str(error)
        if error.cause and error.cause not in text:
            text += f" ({error.cause})"
        if error.hint:
            text += f"; {error.hint}"
        status = next((status for kind, status in _STATUSES if isinstance(error, kind)), None)
        return ApiError(status or HTTPStatus.INTERNAL_SERVER_ERROR, text)
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
