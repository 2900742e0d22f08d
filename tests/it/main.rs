//! The library against the stand-ins of `carnet::sandbox`, over loopback HTTP.

mod clouds;
