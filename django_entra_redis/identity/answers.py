"""The parts of an identity endpoint's answer: status, words, error numbers, a token."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# requests is a dependency of msal, which makes its HTTP requests with it.
import requests

from ..exceptions import TokenRequestError
from .token import quote_expiry, read_time

#: The content of an answer that is not JSON.
_NOT_JSON: Any = object()
#: The beginning of a page of HTML or XML, whatever its declared type is: frameworks
#: declare plain text to be HTML, or JSON.
_PAGE = re.compile(r"[\s\ufeff]*<")
#: Characters of no text.
_BINARY = re.compile(r"[\x00-\x08\x0e-\x1f]")
#: Characters of an error's text that are read: a sentence has fewer, and what searches
#: the text may take time with the square of its length.
MAX_WORDS = 1000
#: The names of the fields with a token's expiry.
_EXPIRIES = ("expires_on", "expires_in")


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint has answered.

    Parameters:
        content: the parsed JSON, or a marker for what is not JSON.
        status: the HTTP status, also if it stands in the JSON alone.
        words: the error's text, on one line.
        error: OAuth's word for the error, or what stands in its place.
        numbers: the numbers of Entra's errors, which the JSON lists or which stand
            anywhere in the answer.
        is_page: whether the content is neither JSON nor text.
    """

    content: Any
    status: int
    words: str
    error: str
    numbers: tuple[int, ...]
    is_page: bool = False

    @property
    def is_json(self) -> bool:
        """Whether the content is JSON."""
        return self.content is not _NOT_JSON

    @property
    def is_object(self) -> bool:
        """Whether the content is a JSON object."""
        return isinstance(self.content, Mapping)

    @property
    def fields(self) -> Mapping[str, Any]:
        """The JSON object; empty for any other content."""
        return self.content if isinstance(self.content, Mapping) else {}

    @property
    def token(self) -> str | None:
        """The access token in it, if there is one."""
        found = self.fields.get("access_token")
        return found if isinstance(found, str) and found else None


def read_answer(response: requests.Response) -> Answer:
    """Return the parts of a response."""
    try:
        content = json.loads(response.content)
    except (ValueError, RecursionError):
        content = _NOT_JSON
    fields = _lower(content)
    status = response.status_code
    inner = str(fields.get("statuscode"))
    if status < 400 and re.fullmatch("[1-5][0-9]{2}", inner):
        status = int(inner)
    error: Any = fields.get("error")
    message = fields.get("message") or fields.get("detail")
    if isinstance(error, Mapping):
        inside = _lower(error)
        error, message = inside.get("code"), inside.get("message")
    message = fields.get("error_description") or message
    said = ": ".join(str(part).strip() for part in (error, message) if part)
    text = response.text
    is_page = content is _NOT_JSON and bool(_PAGE.match(text) or _BINARY.search(text))
    if isinstance(content, str):
        said = content
    elif content is _NOT_JSON and not is_page:
        said = text
    # After the first line, Entra has trace and correlation IDs.
    lines = said.strip("\ufeff").strip().splitlines()
    found = map(int, re.findall(r"AADSTS([0-9]{1,9})", text))
    return Answer(
        content=content,
        status=status,
        words=lines[0].strip()[:MAX_WORDS].rstrip(": ") if lines else "",
        error=str(error),
        numbers=tuple(dict.fromkeys([*_numbers(fields.get("error_codes")), *found])),
        is_page=is_page,
    )


def read_token(response: requests.Response | None) -> Mapping[str, Any]:
    """Return the token in a successful answer, and the expiry that is stated with it.

    Empty if there is no token.

    Raises:
        TokenRequestError: the expiry can't be read.
    """
    if response is None:
        return {}
    answer = read_answer(response)
    if answer.status >= 300 or answer.token is None:
        return {}
    stated = {name: answer.fields.get(name) for name in _EXPIRIES}
    said = quote_expiry(stated)
    if said and all(read_time(value) is None for value in stated.values()):
        raise TokenRequestError(
            f"the token's expiry can't be read in the identity endpoint's answer: "
            f"{said}.",
            code="token_expiry_unreadable",
        )
    return {"access_token": answer.token, **stated}


def _lower(content: Any) -> Mapping[str, Any]:
    """Return the fields of a JSON object, in whose names some endpoints have capitals;
    none for anything else."""
    if not isinstance(content, Mapping):
        return {}
    return {str(name).lower(): value for name, value in content.items()}


def _numbers(listed: Any) -> tuple[int, ...]:
    """Return the numbers in Entra's list of error codes, however it is written."""
    found = listed if isinstance(listed, list) else [listed]
    texts = [str(one).strip().upper().removeprefix("AADSTS") for one in found]
    return tuple(int(text) for text in texts if re.fullmatch("[0-9]{1,9}", text))
