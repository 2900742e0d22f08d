pub mod clock;
pub mod http;
pub mod reason;
pub mod secret;
pub mod target;
pub mod subject;
pub mod policy;
pub mod issuer;
