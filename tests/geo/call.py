"""Calls over TURN servers, with aioice's client.

call.py echo IP PORT                      a peer that sends everything back
call.py try USERNAME PASSWORD PEER HOST…  the first of HOSTs that relays to PEER (ip:port) and back is printed
call.py relay USERNAME PASSWORD A B       a client of server A and one of server B reach each other
"""

import asyncio
import sys

import aioice.turn

PATIENCE = 20.0
# Whoever does not answer at once is no server to wait for.
ATTEMPT = 8.0


class Client(asyncio.DatagramProtocol):
    def __init__(self):
        self.received = asyncio.Queue()

    def datagram_received(self, data, addr):
        self.received.put_nowait((data, addr))


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.transport.sendto(data, addr)


def address(text):
    ip, port = text.rsplit(":", 1)
    return ip, int(port)


async def allocate(host, username, password):
    return await aioice.turn.create_turn_endpoint(
        Client, server_addr=(host, 3478), username=username, password=password
    )


async def send_until_heard(transport, to, client, payload):
    """Sends again until `client` has it: UDP may lose, and permissions take a moment."""
    end = asyncio.get_running_loop().time() + PATIENCE
    while asyncio.get_running_loop().time() < end:
        transport.sendto(payload, to)
        try:
            while True:
                data, addr = await asyncio.wait_for(client.received.get(), 0.5)
                if data == payload:
                    return addr
        except asyncio.TimeoutError:
            pass
    raise SystemExit(f"{payload!r} to {to} never arrived")


async def echo(ip, port):
    await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=(ip, int(port)))
    await asyncio.sleep(600)


async def first(username, password, peer, *hosts):
    for host in hosts:
        try:
            transport, client = await asyncio.wait_for(allocate(host, username, password), ATTEMPT)
        except (asyncio.TimeoutError, OSError, aioice.stun.TransactionError) as error:
            print(f"{host}: {error!r}", file=sys.stderr)
            continue
        await send_until_heard(transport, address(peer), client, b"hello peer")
        transport.close()
        print(host)
        return
    raise SystemExit("no server answers")


async def relay(username, password, a, b):
    one, first_client = await allocate(a, username, password)
    other, second_client = await allocate(b, username, password)
    ones, others = one.get_extra_info("sockname"), other.get_extra_info("sockname")
    # Each lets the other in by sending to it: the first packets may find no permission yet.
    other.sendto(b"open", ones)
    seen = await send_until_heard(one, others, second_client, b"from a to b")
    assert seen == ones, (seen, ones)
    seen = await send_until_heard(other, ones, first_client, b"from b to a")
    assert seen == others, (seen, others)
    one.close()
    other.close()
    print(f"{ones} and {others} reach each other")


asyncio.run({"echo": echo, "try": first, "relay": relay}[sys.argv[1]](*sys.argv[2:]))
