"""The server in a test's event loop."""

import asyncio
import socket

from tests.support.peers import Peer, PeerHost


def test_a_connection_that_comes_at_the_end() -> None:
    """It is closed as well, if it was accepted and is made only then."""

    async def main() -> bytes:
        async with PeerHost(lambda peer, command: None, b"welcome") as host:
            pass
        here, there = socket.socketpair()
        with here:
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: Peer(host), there)
            return await asyncio.to_thread(here.recv, 100)

    assert asyncio.run(main()) == b""
