"""Service Fabric's managed identity: one request, to a server with a known certificate.

msal makes it with a session of its own, which keeps to no REQUEST_TIMEOUT and whose
answers nobody else sees.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from ..exceptions import TokenRequestError
from .http import BoundedSession

#: The variables that Service Fabric sets, all three, for an application with an
#: identity.
_ENDPOINT, _SECRET, _THUMBPRINT = VARIABLES = (
    "IDENTITY_ENDPOINT",
    "IDENTITY_HEADER",
    "IDENTITY_SERVER_THUMBPRINT",
)


def is_here() -> bool:
    """Whether Service Fabric runs this process, and tells it of an identity."""
    return all(map(os.environ.get, VARIABLES))


def request_token(session: BoundedSession, resource: str) -> Mapping[str, Any]:
    """Request a token; return the endpoint's answer.

    Raises:
        TokenRequestError: the endpoint is not to be asked.
        requests.RequestException: it can't be reached, or is another one.
        ValueError: its answer is not JSON, or has no time for the expiry.
    """
    endpoint = os.environ[_ENDPOINT]
    if not endpoint.lower().startswith("https://"):
        raise TokenRequestError(
            f"${_ENDPOINT} should begin with 'https://', as Service Fabric's does: a "
            "secret is sent there.",
            code="managed_identity_refused",
        )
    # The certificate is self-signed.
    session.pin("".join(os.environ[_THUMBPRINT].split()))
    response = session.get(
        endpoint,
        params={"api-version": "2019-07-01-preview", "resource": resource},
        headers={"Secret": os.environ[_SECRET]},
    )
    answer = json.loads(response.text)
    if not isinstance(answer, Mapping) or not answer.get("access_token"):
        return {}
    # Some releases write it as text.
    return {**answer, "expires_on": int(answer["expires_on"])}
