//! `turnix probe`, `turnix top` and `turnix trace`, the built binary, against servers of this process: turnix, and scripted
//! ones for what a sound server does not do.

mod faults;
mod probe;
mod scripted;
mod server;
mod top;
mod trace;
