"""Asks for a Network Traversal token with Twilio's library as it is: BASE ID SECRET.

The library has no setting for its base URL; its documented way out is an HTTP client of one's own.
"""

import json
import sys
from urllib.parse import urlsplit, urlunsplit

from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client


class Here(TwilioHttpClient):
    """Sends what is meant for Twilio to BASE."""

    def __init__(self, base):
        super().__init__()
        self.base = urlsplit(base)

    def request(self, method, url, *args, **kwargs):
        meant = urlsplit(url)
        url = urlunsplit((self.base.scheme, self.base.netloc, meant.path, meant.query, ""))
        return super().request(method, url, *args, **kwargs)


base, account, secret = sys.argv[1:]
token = Client(account, secret, http_client=Here(base)).tokens.create(ttl=600)
print(
    json.dumps(
        {
            "ttl": token.ttl,
            "username": token.username,
            "password": token.password,
            "urls": [server["urls"] for server in token.ice_servers],
            "created": token.date_created.isoformat(),
        }
    )
)
