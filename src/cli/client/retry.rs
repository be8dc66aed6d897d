//! Changes that are asked for again where they are not answered.

use clap::Args;
use data_encoding::HEXLOWER;
use keyward_core::entropy::Entropy;

use super::super::failure::{Exit, Failure};
use crate::util::system::SystemEntropy;

/// Random bytes of a request id.
const ID_BYTES: usize = 16;

/// How a change is named.
#[derive(Debug, Default, Args)]
pub(in crate::cli) struct RetryArgs {
    /// The name of this change, for whoever asks for it again after no answer: within ten minutes the same
    /// command with the same name does nothing twice [default: one for each run, which asks again by itself]
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    request_id: String,
}

impl RetryArgs {
    /// Whether the command line names the change, so that another run may ask for it again.
    pub(in crate::cli) fn is_given(&self) -> bool {
        !self.request_id.is_empty()
    }

    /// The name.
    pub(in crate::cli) fn id(self) -> Result<String, Failure> {
        if self.is_given() {
            return Ok(self.request_id);
        }
        let mut id = [0; ID_BYTES];
        SystemEntropy.fill(&mut id).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        Ok(HEXLOWER.encode(&id))
    }
}
