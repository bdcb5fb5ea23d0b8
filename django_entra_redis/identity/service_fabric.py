"""Service Fabric's managed identity: one request, to a server with a known certificate.

msal would make it with a session of its own, which ignores REQUEST_TIMEOUT and does not
show this package the response of a failed request.
"""

import os
import re
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
        TokenRequestError: the endpoint's URL is not HTTPS, its certificate's thumbprint
            is none, or the token's expiry can't be read.
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
    # Without separators, and without the marks that Windows shows it with.
    thumbprint = "".join(filter(str.isalnum, os.environ[_THUMBPRINT]))
    if not re.fullmatch("[0-9a-fA-F]{40}|[0-9a-fA-F]{64}", thumbprint):
        # Without a thumbprint, urllib3 would accept any certificate.
        raise TokenRequestError(
            f"${_THUMBPRINT} should be the SHA-1 thumbprint of the endpoint's "
            "certificate, which are 40 hexadecimal digits.",
            code="managed_identity_variables",
        )
    # The certificate is self-signed.
    session.pin(thumbprint)
    response = session.get(
        endpoint,
        params={"api-version": "2019-07-01-preview", "resource": resource},
        headers={"Secret": os.environ[_SECRET]},
    )
    return read_token(response)
