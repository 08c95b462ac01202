//! TURN REST time-limited credentials.
