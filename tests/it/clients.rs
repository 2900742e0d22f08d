//! Google's and Azure's own libraries, as pinned in `tests/clients`: each gets its credentials from the broker and calls
//! an API that checks them, over a refresh and a restart.

mod external_account;
mod program;
mod world;
