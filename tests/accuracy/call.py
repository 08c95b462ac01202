"""One end of an aiortc call with audio and video.

call.py offer|answer SIGNALS [turn:HOST:PORT USER PASSWORD]

The ends find each other over the Unix socket SIGNALS, in whatever networks they are. With a server an end may use
nothing but the relay; without, nothing but its own address. It prints "up" once media arrives, falls quiet at the first
line on standard input (and prints "quiet"), and ends with the input.
"""

import asyncio
import json
import os
import sys

from aiortc import (
    RTCConfiguration,
    RTCIceServer,
    RTCIceTransportPolicy,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import AudioStreamTrack, VideoStreamTrack
from av import VideoFrame

from meeting import accept, connect

WIDTH, HEIGHT = 160, 120
PATIENCE = 30


class Noise(VideoStreamTrack):
    """Pictures that take several packets each."""

    async def recv(self):
        pts, time_base = await self.next_timestamp()
        frame = VideoFrame(WIDTH, HEIGHT, "yuv420p")
        for plane in frame.planes:
            plane.update(os.urandom(plane.buffer_size // 3).ljust(plane.buffer_size, b"\x80"))
        frame.pts, frame.time_base = pts, time_base
        return frame


async def signal(writer, description):
    writer.write(json.dumps({"sdp": description.sdp, "type": description.type}).encode() + b"\n")
    await writer.drain()


async def listen(reader):
    return RTCSessionDescription(**json.loads(await reader.readline()))


async def call(role, path, uri=None, user=None, password=None):
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    if uri:
        servers = [RTCIceServer(urls=uri, username=user, credential=password)]
        end = RTCPeerConnection(RTCConfiguration(servers, iceTransportPolicy=RTCIceTransportPolicy.RELAY))
    else:
        end = RTCPeerConnection(RTCConfiguration([]))
    arriving = asyncio.Event()

    @end.on("track")
    async def on_track(track):
        try:
            await track.recv()
            arriving.set()
            while True:
                await track.recv()
        except Exception:  # The other end has gone.
            pass

    tracks = [AudioStreamTrack(), Noise()]
    if role == "offer":
        reader, writer = await connect(path)
        senders = [end.addTrack(track) for track in tracks]
        await end.setLocalDescription(await end.createOffer())
        await signal(writer, end.localDescription)
        await end.setRemoteDescription(await listen(reader))
    else:
        reader, writer = await accept(path)
        await end.setRemoteDescription(await listen(reader))
        senders = [end.addTrack(track) for track in tracks]
        await end.setLocalDescription(await end.createAnswer())
        await signal(writer, end.localDescription)
    await asyncio.wait_for(arriving.wait(), PATIENCE)
    print("up", flush=True)
    await lines.readline()
    for sender in senders:
        sender.replaceTrack(None)
    print("quiet", flush=True)
    await lines.read()
    await end.close()


asyncio.run(call(*sys.argv[1:]))
