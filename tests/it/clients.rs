//! Google's and Azure's own libraries, as pinned in `tests/clients`: each gets its credentials from the broker and calls
//! an API that checks them, over a refresh and a restart.

mod agent;
mod exec;
mod external_account;
mod front;
mod google_config;
mod program;
mod world;
