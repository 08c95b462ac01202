"""Links that are as bad as they are told to be, and know exactly how bad they were.

link.py CONFIGURATION CONTROL

CONFIGURATION is a file of JSON: {"links": {NAME: LINK}, "clocks": {PAYLOAD_TYPE: HZ}, "seed": NUMBER}. A LINK joins two
interfaces of this network: "near", at the server's end, and "far", at the other; "turn" says whether what passes is TURN
or what a peer sees of it; "in" (far to near) and "out" (near to far) are what happens to packets:

    delay     ms that every packet takes
    jitter    ms at most that a packet takes in addition, evenly spread; order is kept
    loss      share of packets that are lost, each by itself
    bursts    [ENTER, LEAVE]: Gilbert and Elliott's chain; everything is lost in its bad state
    reorder   [SHARE, MS]: packets that take so much longer, and are overtaken

All but the delay begin when the link is told {"impair": NAME} on the Unix datagram socket CONTROL; {"report": NAME} is
answered with what happened: RTP streams as they came (sent, lost) and as they arrived at the server (overtaken, jitter:
the D of RFC 3550 §6.4.1 from the first packet of a picture to that of the next, averaged over the latest MEMORY of them,
and over all), and the round trips of relayed STUN checks as the server has to see them.

A packet's time of arrival is the kernel's, and it is due that much later; its departure is taken as it is handed to the kernel.
"""

import gc
import heapq
import json
import os
import random
import select
import socket
import struct
import sys
import time

ETH_P_ALL = 3
SO_TIMESTAMPNS = 35
PACKET_OUTGOING = 4
SNAPLEN = 65536
# RFC 3550 forgets after 16, and two looks at one stream seldom agree.
MEMORY = 512


class Stream:
    """An RTP stream: counted where it enters the link, timed where it leaves it."""

    def __init__(self, payload_type, clock):
        self.payload_type, self.clock = payload_type, clock
        self.sent = self.lost = self.arrived = self.overtaken = 0
        self.highest = self.timestamp = self.transit = None
        self.jitter = self.sum = 0.0
        self.samples = 0

    def arrive(self, at, sequence, timestamp):
        self.arrived += 1
        if self.highest is not None and (sequence - self.highest) & 0xFFFF >= 0x8000:
            self.overtaken += 1
            return
        self.highest = sequence
        if not self.clock or timestamp == self.timestamp:
            return
        self.timestamp = timestamp
        transit = at * self.clock - timestamp
        if self.transit is not None:
            # The timestamp wraps around; no two packets are half its range apart.
            difference = abs((transit - self.transit + 2**31) % 2**32 - 2**31)
            self.samples += 1
            self.sum += difference
            self.jitter += (difference - self.jitter) / min(self.samples, MEMORY)
        self.transit = transit

    def report(self):
        seconds = 1 / self.clock if self.clock else 0
        return {
            "payload_type": self.payload_type,
            "sent": self.sent,
            "lost": self.lost,
            "arrived": self.arrived,
            "overtaken": self.overtaken,
            "jitter_ms": self.jitter * seconds * 1000,
            "mean_jitter_ms": self.sum / max(self.samples, 1) * seconds * 1000,
        }


class Way:
    """One direction of a link."""

    def __init__(self, rules, seed):
        self.delay = rules.get("delay", 0) / 1000
        self.jitter = rules.get("jitter", 0) / 1000
        self.loss = rules.get("loss", 0)
        self.enter, self.leave = rules.get("bursts", (0, 1))
        self.reorder, self.later = rules.get("reorder", (0, 0))
        self.random = random.Random(seed)
        self.bad = False
        self.last = 0.0

    def due(self, at, impaired):
        """When a packet that came at `at` leaves; None: never."""
        if not impaired:
            return at + self.delay
        dice = self.random.random
        self.bad = dice() >= self.leave if self.bad else dice() < self.enter
        if self.bad or dice() < self.loss:
            return None
        due = at + self.delay + dice() * self.jitter
        if dice() < self.reorder:
            return due + self.later / 1000
        due = self.last = max(due, self.last)
        return due


class Check:
    """A STUN check that the server relayed."""

    def __init__(self, at):
        self.at, self.copies, self.answers, self.took = at, 0, 0, None


class Link:
    def __init__(self, name, link, clocks, seed):
        self.turn, self.clocks, self.impaired = link["turn"], clocks, False
        self.ways = {end: Way(link[end], f"{seed} {name} {end}") for end in ("in", "out")}
        self.streams, self.pending, self.trips = {}, {}, []

    def relayed(self, frame):
        """What the relay relays, of an Ethernet frame; None: nothing."""
        if frame[12:14] != b"\x08\x00" or frame[23] != 17:
            return None
        payload = frame[14 + 4 * (frame[14] & 15) + 8 :]
        if not self.turn:
            return payload
        if len(payload) >= 4 and payload[0] & 0xF0 == 0x40:
            return payload[4 : 4 + int.from_bytes(payload[2:4], "big")]
        if payload[:2] not in (b"\x00\x16", b"\x00\x17"):
            return None
        at = 20
        while at + 4 <= len(payload):
            kind, length = struct.unpack_from("!HH", payload, at)
            if kind == 0x13:
                return payload[at + 4 : at + 4 + length]
            at += 4 + (length + 3 & ~3)
        return None

    def rtp(self, data):
        """The stream of an RTP packet, its sequence number and its timestamp."""
        if data is None or len(data) < 12 or data[0] & 0xC0 != 0x80 or 192 <= data[1] <= 223:
            return None
        kind, sequence, timestamp, ssrc = struct.unpack_from("!xBHII", data)
        stream = self.streams.get(ssrc)
        if stream is None:
            stream = self.streams[ssrc] = Stream(kind & 0x7F, self.clocks.get(kind & 0x7F))
        return stream, sequence, timestamp

    def enter(self, end, at, frame):
        """When a frame leaves; None: it is lost."""
        if frame[12:14] != b"\x08\x00":
            return at
        due = self.ways[end].due(at, self.impaired)
        data = self.relayed(frame)
        if end == "in":
            if packet := self.rtp(data):
                packet[0].sent += 1
                packet[0].lost += due is None
        elif data is not None and len(data) >= 20 and data[:2] == b"\x00\x01":
            self.pending.setdefault(data[8:20], Check(at)).copies += 1
        return due

    def leave(self, end, at, frame):
        """A frame has left at `at`."""
        if end == "out":
            return
        data = self.relayed(frame)
        if packet := self.rtp(data):
            packet[0].arrive(at, *packet[1:])
        elif data is not None and len(data) >= 20 and data[:2] == b"\x01\x01":
            check = self.pending.get(data[8:20])
            if check is not None:
                check.answers += 1
                if check.answers == 1:
                    check.took = at - check.at
                # Of a check that was sent again, nobody knows which copy is answered, unless all of them are.
                if check.answers == check.copies:
                    self.trips.append(check.took * 1000)

    def report(self):
        return {
            "streams": {str(ssrc): stream.report() for ssrc, stream in self.streams.items()},
            "trips_ms": self.trips,
        }


def interface(name):
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    end.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    end.bind((name, ETH_P_ALL))
    end.setblocking(False)
    return end


def main(configuration, control):
    with open(configuration) as file:
        config = json.load(file)
    clocks = {int(kind): clock for kind, clock in config["clocks"].items()}
    links, ends = {}, {}
    for name, rules in config["links"].items():
        link = links[name] = Link(name, rules, clocks, config["seed"])
        near, far = interface(rules["near"]), interface(rules["far"])
        ends[near], ends[far] = (link, "out", far), (link, "in", near)
    orders = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    orders.bind(control)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    except OSError:
        print("no real-time priority: links are less exact in their delays, not in what they report", flush=True)
    gc.disable()
    print("ready", flush=True)

    queue, number = [], 0
    sockets = [orders, *ends]
    while True:
        now = time.time()
        wait = max(queue[0][0] - now, 0) if queue else 1.0
        for ready in select.select(sockets, [], [], wait)[0]:
            if ready is orders:
                data, sender = orders.recvfrom(4096)
                for order, name in json.loads(data).items():
                    if order == "impair":
                        links[name].impaired = True
                    report = json.dumps(links[name].report()).encode()
                    orders.sendto(report, sender)
                continue
            link, end, to = ends[ready]
            while True:
                try:
                    frame, notes, _, address = ready.recvmsg(SNAPLEN, 64)
                except BlockingIOError:
                    break
                if address[2] == PACKET_OUTGOING:
                    continue
                seconds, nanoseconds = struct.unpack("qq", notes[0][2][:16])
                due = link.enter(end, seconds + nanoseconds / 1e9, frame)
                if due is not None:
                    number += 1
                    heapq.heappush(queue, (due, number, link, end, to, frame))
        while queue and queue[0][0] <= time.time():
            _, _, link, end, to, frame = heapq.heappop(queue)
            before = time.time()
            try:
                to.send(frame)
            except OSError:  # The host has gone.
                continue
            # Delivery is part of sending: the far end has it somewhere between.
            link.leave(end, (before + time.time()) / 2, frame)


main(*sys.argv[1:])
