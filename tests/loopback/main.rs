//! The real server in this process on loopback: real sockets, real threads, clients that share no code with it.

#[path = "../common/mod.rs"]
mod common;

#[path = "../common/pcapng.rs"]
mod pcapng;

mod client;
mod server;

mod admin;
mod bandwidth;
mod calls;
mod capture;
mod cycles;
mod datagrams;
mod dialects;
mod dtls;
mod dual;
mod hairpin;
mod headers;
mod limits;
mod load;
mod mobility;
mod realms;
mod revocation;
mod service;
mod start;
mod status;
mod streams;
mod stun_proto;
mod tcp_allocations;
mod turn_crate;
mod visits;
