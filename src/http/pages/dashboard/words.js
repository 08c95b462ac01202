
'use strict';

/* Words for what goes wrong. */

const KINDS = {
  allocate: 'Allocation refused', credentials: 'Wrong credentials', peer: 'Peer refused by policy',
  dropped: 'Datagram dropped', connection: 'Connection closed',
};
const REASONS = {
  allocate: {
    300: 'Sent to another server (300)', 400: 'Malformed request (400)', 403: 'Forbidden (403)', 420: 'Unknown attribute (420)',
    437: 'Client has an allocation already (437)', 440: 'No relayed address of that family (440)',
    441: 'Allocation of another user (441)', 442: 'Transport to peers not offered (442)', 486: 'Quota reached (486)',
    500: 'Fault of the server (500)', 508: 'No relay port or descriptor free (508)',
  },
  credentials: {
    unknown_user: 'Unknown user', bad_password: 'Wrong password', expired: 'Credential expired', wrong_realm: 'Another realm',
    wrong_user: 'Another user than the allocation\u2019s',
  },
  peer: {
    port_zero: 'Port 0', own_address: 'A port of this server', configured: 'Refused by peers.deny', metadata: 'Metadata service',
    loopback: 'Loopback', unspecified: 'Unspecified address', link_local: 'Link-local', private: 'Private network',
    cgnat: 'Carrier-grade NAT', unique_local: 'Unique local', multicast: 'Multicast', broadcast: 'Broadcast',
    documentation: 'Documentation range', benchmarking: 'Benchmarking range', reserved: 'Reserved range',
    translated: 'IPv4 embedded in IPv6', loop_only: 'Test page: beyond its own loop',
  },
  dropped: {
    not_stun: 'Neither STUN nor ChannelData', malformed: 'Malformed', unexpected: 'Not for a server', fingerprint: 'Wrong fingerprint',
    no_allocation: 'No allocation', no_channel: 'Channel not bound', no_permission: 'No permission for the peer',
    peer_denied: 'Peer refused by policy', family: 'Other address family', no_relay: 'Relayed address not allocated',
    too_large: 'Too large', stream_queue: 'Client on TCP or TLS too slow', mailbox: 'Between shards: full',
    send_buffer: 'Send buffer full', send_error: 'Kernel refused to send', unanswerable: 'Sender cannot be answered',
    rate_limited: 'Stranger asked too often', receive_buffer: 'Receive buffer full', bandwidth_allocation: 'Bandwidth of an allocation',
    bandwidth_user: 'Bandwidth of a user', bandwidth_total: 'Bandwidth of the server', new_peers: 'Too many new peers', abuse: 'Looks like abuse',
  },
  connection: {
    address: 'Too many of one address', pending: 'Too many undecided', silent: 'Said nothing', handshake: 'TLS handshake failed', proxy: 'PROXY header wrong or missing',
    protocol: 'Spoke nothing known',
  },
};
const reasonText = ({ kind, reason }) => (REASONS[kind] || {})[reason] || printable(reason).replaceAll('_', ' ');
