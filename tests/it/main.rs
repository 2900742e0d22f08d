//! The integration tests: one binary, the real parts against the stand-ins of the sandbox over loopback.

#[cfg(test)]
mod subject;
