"""Two aiortc peer connections, each behind its own allocation, echo messages over a data channel.

usage: aiortc_call.py turn:HOST:PORT?transport=udp|tcp USER PASSWORD

Prints one line of JSON: how many messages came back, what kinds of candidates were offered, the pairs in use.
"""

import asyncio
import json
import sys

from aiortc import (
    RTCConfiguration,
    RTCIceServer,
    RTCIceTransportPolicy,
    RTCPeerConnection,
)

MESSAGES = [bytes([i]) * (16 * (i + 1)) for i in range(64)]


def candidates(pc):
    return [c.type for c in pc.sctp.transport.transport.iceGatherer.getLocalCandidates()]


def pair(pc):
    # aiortc has no public name for the pair in use.
    nominated = pc.sctp.transport.transport._connection._nominated[1]
    return nominated.local_candidate.type + "/" + nominated.remote_candidate.type


async def call(uri, user, password):
    configuration = RTCConfiguration(
        iceServers=[RTCIceServer(urls=uri, username=user, credential=password)],
        iceTransportPolicy=RTCIceTransportPolicy.RELAY,
    )
    caller, callee = RTCPeerConnection(configuration), RTCPeerConnection(configuration)
    try:
        channel = caller.createDataChannel("echo")
        done = asyncio.Event()
        echoed = []

        @channel.on("open")
        def on_open():
            for message in MESSAGES:
                channel.send(message)

        @channel.on("message")
        def on_message(message):
            echoed.append(message)
            if len(echoed) == len(MESSAGES):
                done.set()

        @callee.on("datachannel")
        def on_datachannel(other):
            other.on("message", other.send)

        await caller.setLocalDescription(await caller.createOffer())
        await callee.setRemoteDescription(caller.localDescription)
        await callee.setLocalDescription(await callee.createAnswer())
        await caller.setRemoteDescription(callee.localDescription)
        await asyncio.wait_for(done.wait(), 30)
        return {
            "echoed": sum(sent == received for sent, received in zip(MESSAGES, echoed)),
            "bytes": 2 * sum(map(len, MESSAGES)),
            "candidates": candidates(caller) + candidates(callee),
            "pairs": [pair(caller), pair(callee)],
        }
    finally:
        await caller.close()
        await callee.close()


print(json.dumps(asyncio.run(call(*sys.argv[1:]))))
