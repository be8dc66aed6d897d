//! `keyward health`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::tls::TlsArgs;
use crate::remote::{HealthError, RemoteAddr, ServiceHealth, health};

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// The service, such as keyward.v1.KeyAdmin [default: the server as a whole]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,
    /// The server: a host or an address with a port, or unix:/path
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
    addr: RemoteAddr,
    /// How long it may take, such as 500ms
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    tls: TlsArgs,
}

/// Exit code: the service answers no calls.
const NOT_SERVING: u8 = 1;
// 2 is a wrong command line.
/// Exit code: the server cannot be reached, or does not answer in time.
const NO_ANSWER: u8 = 3;
/// Exit code: the server has no such service.
const UNKNOWN_SERVICE: u8 = 4;

/// Prints the health of the service, and returns it as the exit code.
pub(super) fn run(args: HealthArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("keyward: {error}");
            return NO_ANSWER.into();
        }
    };
    let asked = runtime.block_on(health(&args.addr, args.tls.read().as_ref(), &args.service, args.timeout));
    // Without waiting for the thread that may still resolve a name.
    runtime.shutdown_background();
    match asked {
        Ok(ServiceHealth::Serving) => {
            println!("SERVING");
            ExitCode::SUCCESS
        }
        Ok(ServiceHealth::NotServing) => {
            println!("NOT_SERVING");
            NOT_SERVING.into()
        }
        Err(error) => {
            eprintln!("keyward: {error}");
            match error {
                HealthError::Unknown { .. } => UNKNOWN_SERVICE.into(),
                HealthError::Endpoint(_)
                | HealthError::Connect { .. }
                | HealthError::TimedOut { .. }
                | HealthError::Refused(_) => NO_ANSWER.into(),
            }
        }
    }
}
