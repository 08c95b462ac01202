//! What the RFCs say, section by section, against the core in virtual time.

#[path = "../common/mod.rs"]
mod common;

mod negative;
mod realms;
mod rfc3489_classic;
mod rfc5769_vectors;
mod rfc5780_discovery;
mod rfc5928_resolution;
mod rfc6062_tcp_allocations;
mod rfc7350_dtls;
mod rfc7635_third_party;
mod rfc8016_mobility;
mod rfc8489_10_alternate_server;
mod rfc8489_5_messages;
mod rfc8489_6_3_binding;
mod rfc8489_9_2_long_term;
mod rfc8489_9_2_security_features;
mod rfc8489_b_vectors;
mod rfc8656_10_permissions;
mod rfc8656_11_5_icmp;
mod rfc8656_11_indications;
mod rfc8656_12_5_streams;
mod rfc8656_12_channels;
mod rfc8656_14_ip_headers;
mod rfc8656_7_allocate;
mod rfc8656_7_dual;
mod rfc8656_7_reservations;
mod rfc8656_8_refresh;
mod turn_rest_credentials;
