//! Randomness as a parameter.

/// The source of randomness failed. Nothing may be issued.
#[derive(Debug, thiserror::Error)]
#[error("the source of randomness failed: {0}")]
pub struct EntropyError(pub String);

/// Gives random bytes. In production they come from the operating system; in tests from a seed.
pub trait Entropy: Send + Sync + 'static {
    /// Fills `bytes`.
    ///
    /// # Errors
    /// When the source fails. `bytes` must then not be used.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError>;
}
