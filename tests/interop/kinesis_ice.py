"""Asks for ICE servers with AWS's library as it is: BASE KEY SECRET.

Only the endpoint and the credentials are ours.
"""

import json
import sys

import boto3
from botocore.config import Config

base, key, secret = sys.argv[1:]
client = boto3.client(
    "kinesis-video-signaling",
    endpoint_url=base,
    region_name="eu-central-1",
    aws_access_key_id=key,
    aws_secret_access_key=secret,
    config=Config(retries={"max_attempts": 1}),
)
channel = "arn:aws:kinesisvideo:eu-central-1:123456789012:channel/camera/1234567890123"
answer = client.get_ice_server_config(ChannelARN=channel, ClientId="alice", Service="TURN")
print(json.dumps(answer["IceServerList"]))
