//! How the agent comes to a connection with the API server.

use std::{path::PathBuf, time::Duration};

use ::kube::{
    Client, Config,
    client::ClientBuilder,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use http::Uri;
use tower::util::MapResultLayer;

use super::reach::Reach;

/// How long the server may send nothing at all before the connection counts as dead.
///
/// A server that vanishes without a word leaves its watches open. Bookmarks come about once a minute, so a healthy watch
/// never reaches this; the watcher itself would notice only after five minutes.
const SILENCE: Duration = Duration::from_secs(100);

/// Where the API server is and who asks.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// A kubeconfig file, of which the current context counts; without one, the pod's service account is used.
    pub kubeconfig: Option<PathBuf>,
    /// The server's URL, in place of the one in the file or the pod's environment.
    ///
    /// Within a cluster that environment names the ClusterIP of the Service `kubernetes`, which works only once this very
    /// agent has translated it: a node's first agent needs an address that works without it.
    pub server: Option<String>,
}

/// Why there is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig file cannot be used.
    #[error("{}: cannot be used as a kubeconfig file", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// There is neither a kubeconfig file nor a service account.
    #[error("not in a pod with a service account; name a file with --kubeconfig, or use --source file")]
    NotInCluster(#[source] Box<InClusterError>),
    /// The URL given for the server is none.
    #[error("`{url}` is not the URL of an API server; it looks like https://192.0.2.1:6443")]
    Url {
        /// What was given.
        url: String,
    },
    /// The credentials or certificates cannot be used.
    #[error("{server}: no client can be made from the configuration; check its certificates and credentials")]
    Unusable {
        /// The server's URL.
        server: String,
        /// Why.
        #[source]
        source: Box<::kube::Error>,
    },
}

/// A client of the API server that knows whether the server answers.
#[derive(Clone)]
pub struct Connection {
    client: Client,
    reach: Reach,
}

impl Connection {
    /// Prepares a connection; nothing is sent yet, so that an agent starts while its server is away.
    ///
    /// # Errors
    ///
    /// When the configuration is missing or cannot be used.
    pub async fn new(access: &Access) -> Result<Self, ClientError> {
        let mut config = match &access.kubeconfig {
            Some(path) => {
                let failed = |source| ClientError::Kubeconfig { path: path.clone(), source: Box::new(source) };
                let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)?
            }
            None => Config::incluster().map_err(|source| ClientError::NotInCluster(Box::new(source)))?,
        };
        if let Some(url) = &access.server {
            let uri = url.parse().ok().filter(|uri: &Uri| uri.scheme().is_some() && uri.authority().is_some());
            config.cluster_url = uri.ok_or_else(|| ClientError::Url { url: url.clone() })?;
        }
        Self::with_config(config)
    }

    /// Prepares a connection with a configuration that is complete.
    ///
    /// # Errors
    ///
    /// When its certificates or credentials cannot be used.
    pub fn with_config(mut config: Config) -> Result<Self, ClientError> {
        if config.read_timeout.is_none() {
            config.read_timeout = Some(SILENCE);
            // Otherwise the time that a connection was idle would count.
            config.reset_reader_on_write = true;
        }
        let server = config.cluster_url.to_string();
        let server = server.trim_end_matches('/').to_owned();
        let reach = Reach::new(server.clone());
        let observed = reach.clone();
        let builder = ClientBuilder::try_from(config)
            .map_err(|source| ClientError::Unusable { server, source: Box::new(source) })?;
        let client = builder.with_layer(&MapResultLayer::new(move |result| observed.observe(result))).build();
        Ok(Self { client, reach })
    }

    /// The client.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Whether the last request was answered; true before the first.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        self.reach.is_reachable()
    }
}
