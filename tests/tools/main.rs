//! `turnix probe`, `turnix top`, `turnix trace` and `turnix why`, the built binary, against servers of this process: turnix, and scripted
//! ones for what a sound server does not do.

mod faults;
mod probe;
mod scripted;
mod server;
mod top;
mod trace;
mod why;
