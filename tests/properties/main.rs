//! Random operations against naive models.

mod access;
