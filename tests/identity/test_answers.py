"""The parts of an identity endpoint's answer."""

import json
from typing import Any

import pytest
import requests

from django_entra_redis.exceptions import TokenRequestError
from django_entra_redis.identity.answers import read_token


def response(content: object, status: int = 200) -> requests.Response:
    """Return a response with that as its JSON."""
    answer = requests.Response()
    answer.status_code = status
    answer._content = json.dumps(content).encode()
    return answer


@pytest.mark.parametrize("name", ["expires_on", "expires_in"])
@pytest.mark.parametrize(
    "value", ["09/14/2017 00:00:00 PM +00:00", "soon", [1], "1.5", "", True, "9" * 30]
)
def test_expiry_that_can_not_be_read(name: str, value: object) -> None:
    """The field that is no number is told, and not the token beside it."""
    content = {"access_token": "sesame", name: value}
    with pytest.raises(TokenRequestError) as caught:
        read_token(response(content))
    assert caught.value.code == "token_expiry_unreadable"
    assert f"{name} is '{value}'" in str(caught.value)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({}, 200),
        ([], 200),
        ({"access_token": ""}, 200),
        ({"access_token": "sesame"}, 400),
        ({"access_token": "sesame", "statusCode": 500}, 200),
    ],
)
def test_no_token(content: Any, status: int) -> None:
    """Without one, or in a refusal, there is nothing to read."""
    assert read_token(response(content, status)) == {}
    assert read_token(None) == {}


def test_what_is_stated_with_a_token() -> None:
    """The expiry is handed on as it is written."""
    content = {"access_token": "sesame", "expires_in": "60", "resource": "x"}
    read = {"access_token": "sesame", "expires_in": "60", "expires_on": None}
    assert read_token(response(content)) == read


@pytest.mark.parametrize("other", ["09/14/2017 00:00:00 PM +00:00", True, ""])
def test_one_field_of_two_that_can_be_read(other: object) -> None:
    """One is enough."""
    for fields in (
        {"expires_in": "60", "expires_on": other},
        {"expires_in": other, "expires_on": "1800000000"},
    ):
        content = {"access_token": "sesame", **fields}
        assert read_token(response(content)) == content
