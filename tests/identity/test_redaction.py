"""Texts from outside, without the secrets and tokens that they quote."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_entra_redis.identity import redaction
from django_entra_redis.identity.redaction import MAX_SHOWN, one_line, redact


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


@pytest.mark.parametrize("length", [40, 100, 1000, 2000])
def test_long_secrets(length: int) -> None:
    """However long they are, they are found, encoded, too."""
    secret = "secret-" * (length // 7)
    for form in (
        secret,
        secret.encode().hex(),
        base64.b64encode(secret.encode()).decode(),
    ):
        redacted = redact(f"{'x y ' * 100}{form}{' z' * 10**6}", [secret])
        assert form[:10] not in redacted
        assert len(redacted) < 600


@pytest.mark.parametrize("secret", ["", "secret-" * 10**5])
@pytest.mark.parametrize(
    "words", ["a", "%25", "abcd ", "ab", "&amp;", "\\u0041", "eyJ."]
)
def test_long_texts(secret: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the beginning is searched, which takes a moment."""
    asked: list[int] = []

    def note(text: str) -> str:
        asked.append(len(text))
        return text

    monkeypatch.setattr(redaction, "without_tokens", note)
    text = words * (10**6 // len(words))
    assert len(redact(text, [secret])) <= MAX_SHOWN + 3
    assert len(one_line(text)) <= MAX_SHOWN + 3
    assert max(asked) <= 16 * MAX_SHOWN


def test_one_line() -> None:
    """It is for words in which no secret is known."""
    assert one_line(" a\r\nb\x1b[2J\u202e eyJhb.c.d ") == "a  b [2J  ***"
    assert one_line("plain") == "plain"


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
