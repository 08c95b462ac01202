"""The metadata services of clouds as they answer: paths, headers, and what they refuse. FILE says, as JSON, which local
address has which public one ({"10.0.0.5": "203.0.113.7"}); it is read for each request."""

import http.server
import json
import sys

TOKEN = "AQAEAfake=="


class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if self.path != "/latest/api/token":
            return self.answer(404)
        # As IMDSv2 does: not for those whom a proxy asks for.
        if not ttl.isdigit() or not 1 <= int(ttl) <= 21600 or "X-Forwarded-For" in self.headers:
            return self.answer(400)
        self.answer(200, TOKEN)

    def do_GET(self):
        addresses = json.load(open(sys.argv[3]))
        path, _, query = self.path.partition("?")
        for prefix, cloud in [
            ("/latest/meta-data/", self.aws),
            ("/computeMetadata/", self.gcp),
            ("/metadata/v1.json", self.digitalocean),
            ("/metadata/", self.azure),
            ("/hetzner/", self.hetzner),
            ("/opc/", self.oracle),
        ]:
            if path.startswith(prefix):
                return cloud(path, query, addresses)
        self.answer(404)

    def aws(self, path, _query, addresses):
        if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            return self.answer(401)
        macs = "/latest/meta-data/network/interfaces/macs/"
        associations = macs + "0e:49:61:0f:c3:11/ipv4-associations/"
        publics = {public: local for local, public in addresses.items()}
        if path == macs:
            return self.answer(200, "0e:49:61:0f:c3:11/\n0e:49:61:0f:c3:12/")
        if path == associations and publics:
            return self.answer(200, "\n".join(publics))
        if path.removeprefix(associations) in publics:
            return self.answer(200, publics[path.removeprefix(associations)])
        self.answer(404)

    def gcp(self, path, query, addresses):
        if self.headers.get("Metadata-Flavor") != "Google":
            return self.answer(403)
        if path != "/computeMetadata/v1/instance/network-interfaces/" or query != "recursive=true":
            return self.answer(404)
        interfaces = [
            {"ip": local, "accessConfigs": [{"externalIp": public, "type": "ONE_TO_ONE_NAT"}], "mtu": 1460}
            for local, public in addresses.items()
        ]
        self.answer(200, json.dumps(interfaces), {"Metadata-Flavor": "Google"})

    def azure(self, path, query, addresses):
        if self.headers.get("Metadata") != "true":
            return self.answer(400)
        pairs = list(addresses.items())
        # The first address is a basic one, the others are standard ones, which the load balancer knows.
        if path == "/metadata/instance/network/interface" and query == "api-version=2021-02-01":
            listed = [
                {"privateIpAddress": local, "publicIpAddress": public if index == 0 else ""}
                for index, (local, public) in enumerate(pairs)
            ]
            body = [{"ipv4": {"ipAddress": listed}, "ipv6": {"ipAddress": []}, "macAddress": "000D3AF806EC"}]
            return self.answer(200, json.dumps(body))
        if path == "/metadata/loadbalancer" and query == "api-version=2020-10-01" and len(pairs) > 1:
            listed = [
                {"frontendIpAddress": public, "privateIpAddress": local} for local, public in pairs[1:]
            ]
            body = {"loadbalancer": {"publicIpAddresses": listed, "inboundRules": [], "outboundRules": []}}
            return self.answer(200, json.dumps(body))
        self.answer(404)

    def digitalocean(self, _path, _query, addresses):
        local, public = next(iter(addresses.items()))
        self.answer(200, json.dumps({
            "droplet_id": 2756294,
            "interfaces": {"public": [{
                "ipv4": {"ip_address": "198.51.100.20", "netmask": "255.255.255.0", "gateway": "198.51.100.1"},
                "anchor_ipv4": {"ip_address": local, "netmask": "255.255.0.0", "gateway": "10.0.0.1"},
                "type": "public",
            }]},
            "floating_ip": {"ipv4": {"active": False}},
            "reserved_ip": {"ipv4": {"active": True, "ip_address": public}},
        }))

    def hetzner(self, path, _query, addresses):
        if path != "/hetzner/v1/metadata/public-ipv4":
            return self.answer(404)
        self.answer(200, next(iter(addresses.values())))

    def oracle(self, path, _query, addresses):
        if self.headers.get("Authorization") != "Bearer Oracle" or path != "/opc/v2/vnics/":
            return self.answer(404)
        # Most machines are not told their public address.
        told = "publicIp" if len(addresses) == 1 else "vnicId"
        self.answer(200, json.dumps([
            {"privateIp": local, told: public, "vlanTag": 0} for local, public in addresses.items()
        ]))

    def answer(self, status, body="", headers=None):
        body = body.encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *arguments):
        print(self.command, self.path, flush=True)


server = http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Service)
print("port", server.server_address[1], flush=True)
server.serve_forever()
