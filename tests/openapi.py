"""Real answers held against the description at `/openapi.json`: status, content type, schema and headers."""

from __future__ import annotations

import functools
import json
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

import jsonschema_rs

from gateway.edge import openapi

DOCUMENT = openapi.document(public_url="http://127.0.0.1:8080", version="0")
METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "trace")
NOT_DESCRIBED = frozenset({"connection", "content-length", "content-type"})
"""Headers of HTTP itself, which an OpenAPI document does not list."""


def resolved(node: Mapping[str, Any]) -> dict[str, Any]:
    """What a `$ref` stands for, or the node itself."""
    while "$ref" in node:
        at: Any = DOCUMENT
        for name in node["$ref"].removeprefix("#/").split("/"):
            at = at[name]
        node = at
    return dict(node)


@functools.cache
def operations() -> dict[tuple[str, str], dict[str, Any]]:
    """(method, path) -> operation, of everything that is described; a method in capitals."""
    return {
        (method.upper(), path): item[method]
        for path, item in DOCUMENT["paths"].items()
        for method in METHODS & item.keys()
    }


@functools.lru_cache(1000)
def path_of(method: str, path: str) -> str | None:
    """The described path that a request's path is of; an exact one goes before one with a parameter."""
    plain = urllib.parse.unquote(path.partition("?")[0])
    described = [each for verb, each in operations() if verb == method]
    for each in sorted(described, key=lambda known: "{" in known):
        pattern = re.sub(r"\\\{[a-z_]+\\\}", "(.+)" if "model_id" in each else "([^/]+)", re.escape(each))
        if re.fullmatch(pattern, plain):
            return each
    return None


def problems(method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> list[str]:
    """What an answer has that its description does not allow; header names in lower case."""
    described = path_of(method, path)
    if described is None:
        return [f"{method} {path} is not described"]
    responses = operations()[method, described]["responses"]
    found = responses.get(str(status)) or responses.get("default")
    if found is None:
        return [f"{method} {described} answered {status}, which is not described"]
    response = resolved(found)
    where = f"{method} {described} {status}"
    return [
        f"{where}: {each}" for each in (*_header_problems(response, headers), *_body_problems(response, headers, body))
    ]


def _header_problems(response: Mapping[str, Any], headers: Mapping[str, str]) -> list[str]:
    described = {name.lower(): resolved(each) for name, each in response.get("headers", {}).items()}
    found = [
        f"header {name} is missing" for name, each in described.items() if each.get("required") and name not in headers
    ]
    for name, value in headers.items():
        if name in NOT_DESCRIBED:
            continue
        if name not in described:
            found.append(f"header {name} is not described")
        elif not _validator(json.dumps(described[name]["schema"])).is_valid(value):
            found.append(f"header {name} is {value!r}")
    return found


def _body_problems(response: Mapping[str, Any], headers: Mapping[str, str], body: bytes) -> list[str]:
    content = response.get("content", {})
    if not content:
        return [f"a body of {len(body)} bytes where none is described"] if body else []
    kind = headers.get("content-type", "").partition(";")[0]
    media = content.get(kind) or content.get(f"{kind.partition('/')[0]}/*")
    if media is None:
        return [f"content type {kind!r} is not described"]
    if kind != "application/json":
        return []
    return [
        f"{'/'.join(map(str, each.instance_path))}: {each.message}"
        for each in _validator(json.dumps(media["schema"])).iter_errors(json.loads(body))
    ]


@functools.cache
def _validator(schema: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        json.loads(schema) | {"components": DOCUMENT["components"]}, validate_formats=True
    )


def schema_problems(schema: Mapping[str, Any], value: object) -> list[str]:
    """Where a value is not as a schema of the document says."""
    return [each.message for each in _validator(json.dumps(schema)).iter_errors(value)]


def codes_of(response: Mapping[str, Any]) -> set[str]:
    """The error codes that a described answer lists."""
    found: set[str] = set()
    schemas = [media["schema"] for media in resolved(response).get("content", {}).values()]
    while schemas:
        schema = schemas.pop()
        schemas += [*schema.get("anyOf", []), *schema.get("allOf", [])]
        error = schema.get("properties", {}).get("error", {})
        found |= set(error.get("properties", {}).get("code", {}).get("enum", []))
    return found
