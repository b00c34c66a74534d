//! The sources of change: the unmodified Kubernetes client against API servers, and a folder of YAML. Needs no root.

#[path = "watch/faults.rs"]
mod faults;
#[path = "watch/file.rs"]
mod file;
#[path = "watch/observer.rs"]
mod observer;
#[path = "watch/protocol.rs"]
mod protocol;
#[path = "watch/suite.rs"]
mod suite;

use anyhow::Result;
use dataplane_tests::apiserver::{TestServer, real, real::RealServer};

/// Runs the suite against one kind of API server.
macro_rules! suite {
    ($server:ty: $($test:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $test() -> Result<()> {
                suite::$test::<$server>().await
            }
        )*
    };
}

mod test_server {
    use super::*;

    suite!(TestServer:
        p06_a_service_comes_changes_its_type_and_goes,
        p07_slices_and_p09_this_node_are_delivered,
        p05_what_a_label_leaves_to_others_is_never_seen,
        p58_api_server_down_keeps_last_state_and_resumes,
    );
}

/// The same against a real server, one test after the other since each starts one; nothing to run without its programs.
#[tokio::test]
async fn the_suite_holds_against_the_real_api_server_where_there_is_one() -> Result<()> {
    if real::assets()?.is_none() {
        return Ok(());
    }
    suite::p06_a_service_comes_changes_its_type_and_goes::<RealServer>().await?;
    suite::p07_slices_and_p09_this_node_are_delivered::<RealServer>().await?;
    suite::p05_what_a_label_leaves_to_others_is_never_seen::<RealServer>().await?;
    suite::p58_api_server_down_keeps_last_state_and_resumes::<RealServer>().await
}
