"""One end of a connection that is checked and kept alive by ICE, and carries next to nothing.

checks.py offer|answer SIGNALS [turn:HOST:PORT USER PASSWORD]      as call.py
"""

import asyncio
import json
import sys

import aioice
import aioice.ice

from meeting import accept, connect

# More often than the 5 s of RFC 7675, for more round trips.
aioice.ice.CONSENT_INTERVAL = 1
HELLO = b"\xffhello"


async def check(role, path, uri=None, user=None, password=None):
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    server = {}
    if uri:
        _, host, port = uri.split(":")
        server = {
            "turn_server": (host, int(port)),
            "turn_username": user,
            "turn_password": password,
            "transport_policy": aioice.ice.TransportPolicy.RELAY,
        }
    end = aioice.Connection(ice_controlling=role == "offer", use_ipv6=False, **server)
    await end.gather_candidates()
    reader, writer = await (connect if role == "offer" else accept)(path)
    mine = [end.local_username, end.local_password, [c.to_sdp() for c in end.local_candidates]]
    writer.write(json.dumps(mine).encode() + b"\n")
    await writer.drain()
    end.remote_username, end.remote_password, candidates = json.loads(await reader.readline())
    for candidate in candidates:
        await end.add_remote_candidate(aioice.Candidate.from_sdp(candidate))
    await end.add_remote_candidate(None)
    await end.connect()
    await end.send(HELLO)
    await end.recv()
    print("up", flush=True)
    await lines.readline()
    print("quiet", flush=True)
    await lines.read()
    await end.close()


asyncio.run(check(*sys.argv[1:]))
