//! Clients without credentials, many of them, some of them lying about who they are.
