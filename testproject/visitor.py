"""Somebody with a browser: logs in and visits, over real HTTP."""

import re
from typing import Any
from urllib.parse import urljoin

import requests

TIMEOUT = 15.0


class VisitError(Exception):
    """The site did not do what a visitor may expect."""


class Visitor:
    """One session on the site, which it expects to keep.

    Parameters:
        url: the site's address.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.visits = 0
        self.everybody = 0
        self.session = requests.Session()
        # No proxy and no .netrc: it is on this machine.
        self.session.trust_env = False

    def close(self) -> None:
        """Close the connection to the site."""
        self.session.close()

    def log_in(self, user: str, password: str) -> None:
        """Fill in the form and send it."""
        form = self._get("login/")
        token = _find(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
        fields = {
            "csrfmiddlewaretoken": token,
            "username": user,
            "password": password,
        }
        answer = self.session.post(
            urljoin(self.url, "login/"), fields, timeout=TIMEOUT, allow_redirects=False
        )
        if answer.status_code != 302 or "sessionid" not in self.session.cookies:
            raise VisitError(f"cannot log in as {user}: status {answer.status_code}")

    def visit(self) -> None:
        """Visit the first page: both counters have to have risen."""
        page = self._get("")
        yours = int(_find(r'id="yours" data-visits="(\d+)"', page))
        everybody = int(_find(r'id="everybody" data-visits="(\d+)"', page))
        expected, before = self.visits + 1, self.everybody
        # Taken over also when wrong, so that one loss is counted once.
        self.visits, self.everybody = yours, everybody
        if yours != expected:
            raise VisitError(f"the session counts {yours} visits, not {expected}")
        if everybody <= before:
            raise VisitError(f"the cache counts {everybody} visits after {before}")

    def status(self) -> dict[str, Any]:
        """What the status page reads."""
        document: dict[str, Any] = self._request("status.json").json()
        return document

    def _get(self, path: str) -> str:
        return self._request(path).text

    def _request(self, path: str) -> requests.Response:
        # Not redirected: a session that is lost answers with a way to the login.
        answer = self.session.get(
            urljoin(self.url, path), timeout=TIMEOUT, allow_redirects=False
        )
        if answer.status_code != 200:
            raise VisitError(f"status {answer.status_code} for /{path}")
        return answer


def _find(pattern: str, page: str) -> str:
    match = re.search(pattern, page)
    if match is None:
        raise VisitError(f"a page without {pattern}")
    return match[1]
