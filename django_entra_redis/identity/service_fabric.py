"""Service Fabric's managed identity: one request, to a server with a known certificate.

msal would make it with a session of its own, which ignores REQUEST_TIMEOUT and does not
show this package the response of a failed request.
"""

import os
from collections.abc import Mapping
from typing import Any

from ..exceptions import TokenRequestError
from .answers import read_token
from .http import BoundedSession

#: Service Fabric sets all three variables for an application with an identity.
_ENDPOINT, _SECRET, _THUMBPRINT = (
    "IDENTITY_ENDPOINT",
    "IDENTITY_HEADER",
    "IDENTITY_SERVER_THUMBPRINT",
)


def request_token(session: BoundedSession, resource: str) -> Mapping[str, Any]:
    """Request a token; return the endpoint's answer.

    Raises:
        TokenRequestError: the endpoint's URL is not HTTPS, or the token's expiry can't
            be read.
        requests.RequestException: it can't be reached, or has another certificate.
        ValueError: its answer is not JSON.
    """
    endpoint = os.environ[_ENDPOINT]
    if not endpoint.lower().startswith("https://"):
        raise TokenRequestError(
            f"${_ENDPOINT} should begin with 'https://', as Service Fabric's does: a "
            "secret is sent there.",
            code="managed_identity_variables",
        )
    # The certificate is self-signed.
    session.pin("".join(os.environ[_THUMBPRINT].split()))
    response = session.get(
        endpoint,
        params={"api-version": "2019-07-01-preview", "resource": resource},
        headers={"Secret": os.environ[_SECRET]},
    )
    return read_token(response)
