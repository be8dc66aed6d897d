pub mod authority;
pub mod feed;
pub mod files;
pub mod index;
pub mod keyring;
pub mod store;
pub mod system;
pub mod verify;
