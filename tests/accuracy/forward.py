"""Sends what comes to a local UDP port through a relay, and to another one what comes back.

forward.py HOST PORT USER PASSWORD PEER LOCAL BACK      PEER: IP:PORT; LOCAL, BACK: ports of 127.0.0.1

Prints the relayed address.
"""

import asyncio
import sys

import aioice.turn


class From(asyncio.DatagramProtocol):
    """Passes on what it receives."""

    def __init__(self):
        self.on = lambda data: None

    def datagram_received(self, data, addr):
        self.on(data)


async def main(host, port, user, password, peer, local, back):
    ip, peer_port = peer.rsplit(":", 1)
    relay, relayed = await aioice.turn.create_turn_endpoint(
        From, server_addr=(host, int(port)), username=user, password=password
    )
    loop = asyncio.get_running_loop()
    near, sent = await loop.create_datagram_endpoint(From, local_addr=("127.0.0.1", int(local)))
    sent.on = lambda data: relay.sendto(data, (ip, int(peer_port)))
    relayed.on = lambda data: near.sendto(data, ("127.0.0.1", int(back)))
    print(*relay.get_extra_info("sockname"), flush=True)
    await asyncio.get_running_loop().create_future()


asyncio.run(main(*sys.argv[1:]))
