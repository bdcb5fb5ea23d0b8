"""Texts from outside, without the secrets and tokens that they quote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_entra_redis.identity.redaction import redact


@pytest.mark.parametrize(
    ("secret", "text", "shown"),
    [
        ("a", "The header is not that of a machine", None),
        ("x", "X-IDENTITY-HEADER x is not expected: 'x'", "*** is not expected: '***'"),
        ("12", "HTTP 412 in 120 ms: 12", "HTTP 412 in 120 ms: ***"),
        ("not", "nothing, not this", "nothing, *** this"),
        ("*", "no * here: 2*3", "no *** here: 2*3"),
        ("***", "*** is no secret", "*** is no secret"),
        ("open", "reopened: open", "reopened: ***"),
        ("sesame", "sesames: opensesame", "***s: open***"),
    ],
)
def test_short_secrets(secret: str, text: str, shown: str | None) -> None:
    """What is found by accident in other words is no secret there."""
    redacted = redact(text, [secret])
    if shown is None:
        assert redacted == text.replace(" a ", " *** ")
    else:
        assert redacted.endswith(shown)
        assert redacted.count("***") == shown.count("***")


@pytest.mark.parametrize(
    "text",
    [
        "No MSI found for specified ClientId/ResourceId.",
        "Identity found for specified ClientId/ResourceId/PrincipalId.",
        "ManagedIdentityCredential.GetTokenAsync failed",
        "Microsoft.ManagedIdentity/userAssignedIdentities/web",
        "X-IDENTITY-HEADER/x-ms-identity-principal-id",
    ],
)
def test_names_are_no_tokens(text: str) -> None:
    """What endpoints call things is shown."""
    assert redact(text) == text


@pytest.mark.parametrize(
    "token",
    [
        "aBcDeFgHiJkLmNoPqRsTuV",
        "s3cr3tT0k3nV4lu3W1thD1g1ts",
        "q83vEjRWeJCrze8SNFZ4kKvN",
    ],
)
def test_what_looks_random_is_a_token(token: str) -> None:
    """An opaque token is not shown, with letters alone, too."""
    assert redact(f"not {token}.") in ("not ***", "not ***.")


def test_secret_within_a_secret() -> None:
    """The longer one is taken for what it is, whatever the order."""
    for secrets in (["sesame", "open sesame"], ["open sesame", "sesame"]):
        assert redact("'open sesame', 'sesame'", secrets) == "'***', '***'"


@given(st.lists(st.text(min_size=1, max_size=8), max_size=3), st.text(max_size=30))
def test_any_secrets(secrets: list[str], text: str) -> None:
    """Whatever they are, none that is quoted alone is shown."""
    quoted = "".join(f" \x00{secret}\x00 " for secret in secrets)
    redacted = redact(f"{text} {quoted}", secrets)
    left = redacted.replace("***", "")
    assert not any(
        len(secret) > 4 and secret.isprintable() and secret in left
        for secret in secrets
    )
