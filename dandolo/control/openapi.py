"""The admin interface described for programs: OpenAPI 3.1, made from the routes that are served.

Source: the OpenAPI Specification 3.1.0, whose schemas are JSON Schema 2020-12, so that a route's own stands here as
it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dandolo import __version__
from dandolo.control.route import Route

_TEXT = {"type": ["string", "null"]}
_ERROR = {
    "type": "object",
    "description": "what was observed, what was expected, and what to do",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "param": _TEXT, "code": _TEXT},
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


def description(routes: Iterable[Route]) -> dict[str, Any]:
    """The document of `GET /admin/openapi.json`."""
    paths: dict[str, dict[str, Any]] = {}
    for route in sorted(routes, key=lambda one: (one.path, one.method)):
        path, parameters = route.path.decode("ascii"), []
        if path.endswith("/") and len(path) > 1:
            path = f"{path}{{{route.rest}}}"
            parameters.append({"name": route.rest, "in": "path", "required": True, "schema": {"type": "string"}})
        parameters += [
            {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
            for name, text in route.parameters.items()
        ]
        paths.setdefault(path, {}).setdefault(route.method.lower(), _operation(route, path, parameters))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Dandolo, for operators",
            "version": __version__,
            "description": "Errors come in one envelope. Where keys are configured, all but open paths want one.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "responses": {
                "Error": {
                    "description": "why not",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                }
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _operation(route: Route, path: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    words = [word for word in path.replace("{", "/").replace("}", "").replace(".", "/").split("/") if word]
    said: dict[str, Any] = {
        "operationId": "_".join([route.method.lower(), *words]),
        "summary": route.summary,
        "responses": {"2XX": {"description": route.summary}, "default": {"$ref": "#/components/responses/Error"}},
    }
    if parameters:
        said["parameters"] = parameters
    if route.schema is not None:
        said["requestBody"] = {"required": True, "content": {"application/json": {"schema": dict(route.schema)}}}
    if route.open:
        said["security"] = []
    return said
