"""The credential provider; settings and URLs name it by this path."""

from .provider import EntraCredentialProvider, get_credential_provider

__all__ = ["EntraCredentialProvider", "get_credential_provider"]
