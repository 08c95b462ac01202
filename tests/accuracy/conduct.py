"""Conducts the calls of calls.json and compares what the server says of them with what the links did.

conduct.py names [CALL…]        the numbers of the calls
conduct.py links NUMBER…        the configuration of the links, as link.py reads it
conduct.py calls WORK NUMBER…   makes the calls, prints a table, and fails where the server is not as exact as it should be

WORK has `hosts` (NAME PID per line) and the socket `control` of the links.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SECONDS = float(os.environ.get("ACCURACY_SECONDS", "12"))
# More would starve each other on a small machine.
AT_ONCE = 3
PATIENCE = 60
# aiortc's payload types and GStreamer's: Opus, VP8, its retransmissions.
CLOCKS = {96: 48000, 97: 90000, 98: 90000}
AUXILIARY = 98
MEDIA = {96: "audio", 97: "video", 98: "auxiliary"}
PORTS = {"full": 3478, "sampled": 3479}

# How exact the server is to be: ms, share, share of the jitter (or ms, of small ones).
RTT, LOSS, JITTER, SMALL = 2.0, 0.005, 0.15, 0.3
# What a sample tells of the whole depends on which seconds it took.
SAMPLED_LOSS, SAMPLED_JITTER = 0.03, 0.35


with open(f"{HERE}/calls.json") as file:
    CALLS = list(json.load(file).items())


def call_of(number):
    return CALLS[int(number)]


def links(numbers):
    made = {}
    for place, number in enumerate(numbers, 1):
        _, call = call_of(number)
        for side in ("client", "peer"):
            host = f"{side}{place}"
            rules = call[side]
            made[host] = {
                "near": f"{host}-near",
                "far": f"{host}-far",
                "turn": side == "client" or call.get("relayed") == "both",
                "in": rules,
                "out": rules,
            }
    return {"links": made, "clocks": CLOCKS, "seed": 8}


class Control:
    """The links, and the server's word."""

    def __init__(self, work):
        self.work = work
        with open(f"{work}/hosts") as file:
            self.hosts = dict(line.split() for line in file)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"{work}/conductor")
        self.socket.connect(f"{work}/control")
        self.socket.settimeout(10)

    def order(self, order, host):
        self.socket.send(json.dumps({order: host}).encode())
        return json.loads(self.socket.recv(1 << 20))

    def on(self, host, *words):
        # Ends that starve send media that is slower than its clock, whatever the machine does besides.
        return ["nsenter", "-t", self.hosts[host], "-n", "--", "nice", "-n", "-10", *words]

    def allocations(self, mode):
        url = f"http://127.0.0.1:{PORTS[mode] + 100}/api/v1/allocations"
        return json.loads(subprocess.check_output(self.on("server", "curl", "-fsS", url)))

    def start(self, name, host, *words):
        """Starts a program whose output is read, and whose errors are in a log."""
        with open(f"{self.work}/{name}.log", "w") as log:
            return subprocess.Popen(
                self.on(host, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )


def expect(process, word):
    line = process.stdout.readline().strip()
    if not line.startswith(word):
        raise SystemExit(f"{' '.join(process.args)}: {line!r} in place of {word!r}")
    return line


class Aiortc:
    """Audio and video, both ways."""

    script, before = "call.py", ()

    def __init__(self, control, place, call):
        port = PORTS[call.get("mode", "full")]
        relay = [f"turn:10.0.0.1:{port}", "call", "accuracy"]
        both = call.get("relayed") == "both"
        ends = (("peer", "answer", relay if both else []), ("client", "offer", relay))
        self.ends = [
            control.start(
                f"{side}{place}",
                f"{side}{place}",
                *self.before,
                sys.executable,
                f"{HERE}/{self.script}",
                role,
                f"{control.work}/signals{place}",
                *words,
            )
            for side, role, words in ends
        ]

    def up(self):
        for end in self.ends:
            expect(end, "up")

    def quiet(self):
        for end in self.ends:
            end.stdin.write("quiet\n")
            end.stdin.flush()
        for end in self.ends:
            expect(end, "quiet")

    def end(self):
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.stdin.close()
        for end in self.ends:
            try:
                end.wait(10)
            except subprocess.TimeoutExpired:
                end.kill()
                end.wait()


class Checks(Aiortc):
    """ICE alone, of ends that answer at once whatever else goes on: round trips are what the links make of them."""

    script, before = "checks.py", ("chrt", "--rr", "1")


class Gstreamer:
    """Both ends send from one port what two pipelines make; nothing but RTP."""

    def __init__(self, control, place, call):
        self.control, self.place = control, place
        port = PORTS[call.get("mode", "full")]
        peer = f"10.2.{place}.2:5004"
        self.forward = control.start(
            f"forward{place}",
            f"client{place}",
            *[sys.executable, f"{HERE}/forward.py", "10.0.0.1", str(port), "call", "accuracy", peer, "5004", "5006"],
        )
        self.ends = [self.forward]

    def up(self):
        relayed, port = expect(self.forward, "10.").split()
        ends = (("client", "127.0.0.1", "5004", "5006"), ("peer", relayed, port, "5004"))
        for side, host, port, own in ends:
            host_name = f"{side}{self.place}"
            pipeline = (
                f"funnel name=all ! udpsink host={host} port={port} bind-port={own} sync=false async=false "
                "audiotestsrc is-live=true wave=ticks ! audioconvert ! audioresample ! opusenc ! "
                "rtpopuspay pt=96 ! all. "
                "videotestsrc is-live=true pattern=snow ! video/x-raw,width=160,height=120,framerate=30/1 ! "
                "vp8enc deadline=1 target-bitrate=600000 ! rtpvp8pay pt=97 ! all."
            )
            self.ends.append(
                self.control.start(f"gst-{host_name}", host_name, "gst-launch-1.0", "-q", *pipeline.split())
            )
        end = time.monotonic() + PATIENCE
        for side in ("client", "peer"):
            while len(self.control.order("report", f"{side}{self.place}")["streams"]) < 2:
                if time.monotonic() > end:
                    raise SystemExit("GStreamer sends nothing")
                time.sleep(0.1)

    def quiet(self):
        for end in self.ends[1:]:
            end.terminate()
            end.wait()

    def end(self):
        for end in self.ends:
            end.kill()
            end.wait()


KINDS = {"aiortc": Aiortc, "checks": Checks, "gstreamer": Gstreamer}


def smooth(trips):
    """The smoothed round-trip time of RFC 6298."""
    smoothed = None
    for trip in trips:
        smoothed = trip if smoothed is None else smoothed + (trip - smoothed) / 8
    return smoothed


class Table:
    def __init__(self):
        self.failed = []

    def row(self, call, what, truth, said, holds, places=1):
        show = lambda value: "-" if value is None else f"{value:.{places}f}"
        print(f"| {call} | {what} | {show(truth)} | {show(said)} |{'' if holds else ' **out**'}", flush=True)
        if not holds:
            self.failed.append(f"{call}, {what}: {truth} and {said}")


def judge(table, call, rules, allocation, into):
    """Compares what the server says of `allocation` with the links that its packets came in by: {leg: report}."""
    quality = allocation.get("quality") or {}
    sampled = rules.get("mode") == "sampled"
    loss_bar, jitter_bar = (SAMPLED_LOSS, SAMPLED_JITTER) if sampled else (LOSS, JITTER)
    for leg, way in (("client", "to_peer"), ("peer", "to_client")):
        link = into[leg]
        said = quality["rtt_ms"][leg]
        truth = smooth(link["trips_ms"])
        if rules.get("ends") == "checks":
            # The way there and back, whatever the links measured.
            truth = 2 * rules[leg]["delay"]
        if truth is not None or said is not None:
            said = said and said["smoothed"]
            near = truth is not None and said is not None and abs(truth - said) <= RTT
            table.row(call, f"RTT to the {leg}, ms", truth, said, near)
        if rules.get("ends") == "checks":
            continue
        main = {ssrc: s for ssrc, s in link["streams"].items() if s["payload_type"] != AUXILIARY}
        sent, lost = (sum(s[key] for s in main.values()) for key in ("sent", "lost"))
        truth, said = lost / sent, quality["loss"][way]
        near = said is not None and abs(truth - said) <= loss_bar
        table.row(call, f"loss from the {leg}, %", 100 * truth, said and 100 * said, near, 2)
        streams = {str(s["ssrc"]): s for s in quality["streams"] if s["direction"] == way}
        for ssrc, stream in main.items():
            kind = MEDIA[stream["payload_type"]]
            seen = streams.get(ssrc, {})
            truth, said = stream["jitter_ms"], seen.get("jitter_ms")
            if sampled:
                truth = stream["mean_jitter_ms"]
            near = said is not None and abs(truth - said) <= max(jitter_bar * truth, SMALL)
            table.row(call, f"jitter of {kind} from the {leg}, ms", truth, said, near, 2)
            if not sampled:
                truth, said = stream["overtaken"], seen.get("reordered")
                table.row(call, f"packets of {kind} overtaken from the {leg}", truth, said, truth == said, 0)
            if seen.get("media") != kind:
                table.failed.append(f"{call}: {kind} is taken for {seen.get('media')}")
        if not quality["media"][way]:
            table.failed.append(f"{call}: no media {way}")
        if rules.get("ends", "aiortc") == "aiortc" and not quality["dtls"][way]:
            table.failed.append(f"{call}: no DTLS {way}")
    if quality["session"] != "established":
        table.failed.append(f"{call}: the session is {quality['session']}")


class Conductor:
    def __init__(self, work):
        self.control, self.table, self.record = Control(work), Table(), {}
        # An attempt before this one may have left allocations.
        self.earlier = {mode: {a["id"] for a in self.control.allocations(mode)} for mode in PORTS}
        self.made = []

    def start(self, calls):
        """Starts calls and, when all of them are up, what the links do to them."""
        made = []
        for name, rules, place in calls:
            kind = KINDS[rules.get("ends", "aiortc")]
            made.append((name, rules, place, kind(self.control, place, rules)))
            self.made.append(made[-1][-1])
        for *_, call in made:
            call.up()
        for _, _, place, _ in made:
            for side in ("client", "peer"):
                self.control.order("impair", f"{side}{place}")
        return made

    def finish(self, made):
        """Lets calls fall quiet, compares, and ends them."""
        for *_, call in made:
            call.quiet()
        # What is on its way arrives.
        time.sleep(1)
        for name, rules, place, call in made:
            mode = rules.get("mode", "full")
            said = [a for a in self.control.allocations(mode) if a["id"] not in self.earlier[mode]]
            client, peer = (self.control.order("report", f"{side}{place}") for side in ("client", "peer"))
            self.record[name] = {"said": said, "client": client, "peer": peer}
            # Before its media share a transport, aiortc has an allocation for each.
            of = lambda net: max(
                (a for a in said if a["client"].startswith(f"10.{net}.{place}.2:")),
                key=lambda a: a["packets"]["to_peer"],
            )
            judge(self.table, name, rules, of(1), {"client": client, "peer": peer})
            if rules.get("relayed") == "both":
                judge(self.table, f"{name}, the other", rules, of(2), {"client": peer, "peer": client})
        for *_, call in made:
            call.end()

    def conduct(self, numbers):
        calls = [(*call_of(number), place) for place, number in enumerate(numbers, 1)]
        long = [call for call in calls if call[1].get("long")]
        short = [call for call in calls if call not in long]
        print("| Call | What | Truth | turnix |\n|---|---|---:|---:|", flush=True)
        try:
            going = self.start(long)
            for first in range(0, len(short), AT_ONCE):
                made = self.start(short[first : first + AT_ONCE])
                time.sleep(SECONDS)
                self.finish(made)
            if long and not short:
                time.sleep(4 * SECONDS)
            self.finish(going)
        finally:
            for call in self.made:
                call.end()
            with open(f"{self.control.work}/record.json", "w") as file:
                json.dump(self.record, file, indent=1)
        if self.table.failed:
            raise SystemExit("\n".join(["not as exact as it should be:", *self.table.failed]))


match sys.argv[1:]:
    case ["names", *names]:
        unknown = set(names) - {name for name, _ in CALLS}
        if unknown:
            raise SystemExit(f"no such call: {', '.join(unknown)}")
        print(*[number for number, (name, _) in enumerate(CALLS) if not names or name in names])
    case ["links", *numbers]:
        json.dump(links(numbers), sys.stdout)
    case ["calls", work, *numbers]:
        Conductor(work).conduct(numbers)
