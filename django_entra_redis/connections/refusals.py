"""Error replies as exceptions, above all those to the first commands on a connection.

The wording of a refusal differs between servers: Azure has been seen to reply "ERR
WRONGPASS" to AUTH, for which redis-py has no exception class. Therefore the command
decides what an error means, and the wording only where it clearly means something else.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from redis.connection import DefaultParser
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    BusyLoadingError,
    ConnectionError,
    NoPermissionError,
    ReadOnlyError,
    ResponseError,
)

from .._errors import without_frames
from ..commands.resp import is_malformed_redirect
from ..exceptions import (
    EntraRedisError,
    GreetingNotPermittedError,
    GreetingRefusedError,
    TokenRefusedError,
    WrongDatabaseError,
)
from ..identity.redaction import redact
from ..identity.token import Token

#: The commands that authenticate.
AUTHENTICATING = frozenset({"AUTH", "HELLO"})
#: First commands of a connection, and the advice where the user may not run them.
_GREETING = {
    "HELLO": "Allow +hello, or set OPTIONS['protocol'] to 2.",
    "CLIENT": "Allow +client|setname, or remove OPTIONS['client_name'].",
    "SELECT": "Allow +select, or use database 0.",
}
#: First words of error replies that are about the server, its cluster, or the protocol
#: ("Redis cluster specification", and Redis' own source, server.c).
_OTHER = frozenset(
    {
        "ASK",
        "BUSY",
        "CLUSTERDOWN",
        "CROSSSLOT",
        "DENIED",  # by protected mode, before any authentication
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "MOVED",
        "NOPERM",
        "NOPROTO",
        "NOREPLICAS",
        "OOM",
        "READONLY",
        "TRYAGAIN",
    }
)

#: Characters of an error reply that its meaning is looked for in.
_MAX_READ = 1000
#: Characters of a redirection that leads nowhere, if it is quoted.
_MAX_QUOTED = 100
#: The wordings of "too many connections". Like the other patterns here, it takes time
#: in proportion to the text: a server chooses the text, and no other thread runs
#: meanwhile.
TOO_MANY_CLIENTS = re.compile(
    r"\b(max\w*+|too many)( number of)? (clients|connections)", re.IGNORECASE
)
#: First words of error replies that redis-py has no class for, or one for clusters
#: alone, and the class of redis-py's that means the same: the server carries out no
#: command for a while (LOADING), or no writes (READONLY).
_STATES: Mapping[str, type[Exception]] = {
    "BUSY": BusyLoadingError,  # It runs a script that does not end.
    "MASTERDOWN": BusyLoadingError,  # A replica that has lost its primary.
    "MISCONF": ReadOnlyError,  # It can't save its data.
    "NOREPLICAS": ReadOnlyError,  # It has too few replicas.
}
_NAMED = re.compile(r"'(\w++)[^']*+' command")
#: How proxies that send no error codes refuse commands before an AUTH. It is matched at
#: the beginning alone, since error replies quote the command.
_UNAUTHENTICATED = re.compile(
    r"((client|connection) )?(is )?(not authenticated|unauthenticated)\b"
    r"|authentication (is )?(required|needed)\b",
    re.IGNORECASE,
)
# redis-py gives this function no type.
_parse: Callable[[str], Exception] = DefaultParser.parse_error


def read_error(
    words: str, parse: Callable[[str], Exception] | None = None
) -> Exception:
    """Return an error reply as an exception of redis-py's class for its first word.

    Some servers put "ERR" before that word; redis-py then finds no class for it. Words
    that mean the same to a client have the same class.

    Parameters:
        words: the text of the reply.
        parse: a function of redis-py that does so; ``None``: its default parser's.
    """
    parse = parse or _parse
    text = words.removeprefix("ERR ")
    if kind := _STATES.get(text.partition(" ")[0]):
        return kind(text)
    if is_malformed_redirect(text):
        # With "ERR", so that it is not followed. redis-py would raise an error of
        # Python's, which quotes a part of it. A part of a secret would not be found.
        if words.isprintable() and len(words) <= _MAX_QUOTED:
            return ResponseError(words)
        first = words.partition(" ")[0]
        return ResponseError(f"{first} to what is no address, {len(words)} characters")
    error = parse(words)
    if type(error) is not ResponseError:
        return error
    if text != words:
        error = parse(text)
    if _UNAUTHENTICATED.match(text):
        return AuthenticationError(text)
    return error


def greeting_error(
    command: object, error: Exception, database: object, secrets: Iterable[str | None]
) -> Exception:
    """Translate an error reply to one of the first commands on a connection.

    Parameters:
        command: the name of the command.
        error: the reply, as redis-py has parsed it, or an error of redis-py's own.
        database: the number in the SELECT command.
        secrets: what the connection has sent to authenticate, see :func:`redacted`.
    """
    if isinstance(error, EntraRedisError):
        return error  # It has been translated already.
    meaning = error
    if command in AUTHENTICATING:
        meaning = authentication_error(error)
    meaning = redacted(meaning, secrets)
    if command == "SELECT":
        meaning = selection_error(meaning, database)
    if command not in _GREETING:
        return meaning
    text = f"Redis refused {command} on a new connection ({str(meaning).rstrip('.')})."
    if isinstance(meaning, NoPermissionError):
        return GreetingNotPermittedError(f"{text} {_GREETING[str(command)]}")
    if type(meaning) is ResponseError and command == "CLIENT":
        return GreetingRefusedError(f"{text} Check OPTIONS['client_name'].")
    return meaning


def sent_password(password: Any) -> list[str]:
    """Return what a connection has sent of its option ``password``, to be redacted.

    redis-py sends bytes as they are, and a number as its digits; the server quotes them
    in an error reply, which is read as UTF-8.

    Parameters:
        password: the option, of any type: a cache that no check has seen fails with
            redis-py's own error, not with one about this.
    """
    if isinstance(password, bytes):
        return [password.decode(errors="replace")]
    return [str(password)] if isinstance(password, str | int) else []


def redacted(error: Exception, secrets: Iterable[str | None]) -> Exception:
    """Return an error without secrets and tokens, on one line, printable and bounded.

    Servers and proxies quote in an error reply what they have been sent. It is another
    error then, in whose arguments and traceback the quotation is not found either.

    Parameters:
        error: an error of redis-py's, or of this package, which quotes nothing.
        secrets: the token or password that the server has been sent.
    """
    text = str(error)
    shown = redact(text, secrets)
    if shown == text or isinstance(error, EntraRedisError):
        return error
    redirect = f"MOVED {shown}"
    if isinstance(error, AskError) and is_malformed_redirect(redirect):
        return ResponseError(redirect)  # Its class would read an address from it.
    return type(error)(shown)


def interruption(error: BaseException, secrets: Iterable[str | None]) -> BaseException:
    """Return what ends an attempt, no error of the connection's, without a secret.

    Parameters:
        error: what was raised: by a signal handler, by a task's being cancelled, or by
            int(), which quotes what is no number where redis-py reads one.
        secrets: see :func:`redacted`.
    """
    if type(error) is ValueError:
        return without_frames(redacted(error, secrets))
    return without_frames(error)


def authentication_error(error: Exception) -> Exception:
    """Translate an error reply to AUTH, or to HELLO with AUTH.

    Parameters:
        error: the reply, as redis-py has parsed it, or an error of redis-py's own.
    """
    # A server that does not know HELLO quotes its arguments, the token among them.
    said = str(error).partition(", with args")[0]
    # redis-py has removed an "ERR" that some servers put before the word that counts.
    again = read_error(said) if type(error) is ResponseError else error
    text = said[:_MAX_READ]
    if isinstance(again, NoPermissionError):
        # NOPERM names the command that the user may not run.
        named = _NAMED.search(text)
        return (
            again if named and named[1].lower() != "auth" else AuthenticationError(said)
        )
    if type(again) not in (ResponseError, AuthenticationWrongNumberOfArgsError):
        return again
    if TOO_MANY_CLIENTS.search(text):
        return ConnectionError(said)
    if "loading the dataset" in text.lower():
        return BusyLoadingError(said)
    if text.partition(" ")[0] in _OTHER or text.startswith("unknown command"):
        return again
    return AuthenticationError(said)


def refused_from(replies: Sequence[Any], count: int) -> list[Any] | None:
    """Return the replies to a batch after whose last reply the connection has closed.

    If that is an error reply, the server has refused to read on, as it does at a value
    over its limit, and the error speaks for the commands that follow, too.

    Parameters:
        replies: the replies that have come.
        count: the number of commands.

    Returns:
        As many replies as commands; ``None``: the connection broke for no such reason.
    """
    if not replies or type(replies[-1]) is not ResponseError:
        return None
    return [*replies, *[replies[-1]] * (count - len(replies))]


def is_about_the_server(error: Exception) -> bool:
    """Whether an error reply tells the state of the server or its cluster, and not what
    is wrong with the command."""
    return type(error) is not ResponseError or str(error).partition(" ")[0] in _OTHER


def forbids_command(error: ResponseError) -> bool:
    """Whether an error reply to a read is about the command itself, and neither about
    its key nor about the server's state."""
    if isinstance(error, NoPermissionError):
        # "No permissions to access a key"; before Redis 7 "no permissions to access one
        # of the keys used as arguments".
        return " access " not in f" {error}"
    return not is_about_the_server(error)


def is_refusal(error: Exception | None) -> bool:
    """Whether an error is Redis' refusal of a token, and not yet translated.

    The token may be revoked, or its rights have changed. Each kind of connection then
    tries another token once, and raises :func:`refusal` if that is refused, too.
    """
    own = isinstance(error, EntraRedisError)
    return isinstance(error, AuthenticationError) and not own


def refusal(token: Token, error: Exception | None) -> TokenRefusedError:
    """Return the error to raise when Redis refuses a token."""
    return TokenRefusedError(
        f"Redis refused the token of user '{token.username}' "
        f"({str(error).rstrip('.')}). The user name should be the principal's object "
        "ID (not its client ID), and the principal should have an access policy on "
        "this cache."
    )


def selection_error(error: Exception, database: object) -> Exception:
    """Translate an error reply to SELECT.

    Parameters:
        error: the reply, as redis-py has parsed it.
        database: the number in the SELECT command.
    """
    if is_about_the_server(error):
        return error
    return WrongDatabaseError(
        f"The server refuses database {database} ({str(error).rstrip('.')}). Azure "
        "Managed Redis and Redis Cluster have database 0 only: remove the database "
        "from LOCATION and OPTIONS, and separate caches by KEY_PREFIX."
    )
