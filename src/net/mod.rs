//! ALL unsafe and syscalls.
