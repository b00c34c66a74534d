//! A real kube-apiserver with its etcd, where KUBEBUILDER_ASSETS names a folder that holds both programs.

use std::{
    env, fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use kube::config::AuthInfo;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::ApiServer;

/// Names the folder, as in kubebuilder's own test environment.
const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// How long the server may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who the tests are; the server listens on loopback and ends with them.
const TOKEN: &str = "sluice-tests";

/// The two processes; both are killed on drop.
#[derive(Debug)]
pub struct RealServer {
    assets: PathBuf,
    folder: TempDir,
    port: u16,
    etcd_port: u16,
    etcd: Process,
    server: Option<Process>,
}

/// A child that dies with its guard.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // An error says that it has ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The folder with the real programs, if there is one.
///
/// # Errors
///
/// When the variable is set, but a program is missing: then somebody wants these tests and would not get them.
pub fn assets() -> Result<Option<PathBuf>> {
    let Some(folder) = env::var_os(ASSETS).filter(|folder| !folder.is_empty()) else { return Ok(None) };
    let folder = PathBuf::from(folder);
    for program in ["etcd", "kube-apiserver"] {
        ensure!(folder.join(program).is_file(), "{ASSETS}: {} has no {program}", folder.display());
    }
    Ok(Some(folder))
}

impl ApiServer for RealServer {
    async fn start() -> Result<Self> {
        let assets = assets()?.with_context(|| format!("{ASSETS} is not set"))?;
        let folder = TempDir::with_prefix("sluice-apiserver-")?;
        fs::write(folder.path().join("tokens.csv"), format!("{TOKEN},tests,tests,\"system:masters\"\n"))?;
        fs::write(folder.path().join("accounts.key"), account_key()?)?;
        let [port, etcd_port, peer_port] = free_ports()?;
        let etcd = start_etcd(&assets, folder.path(), etcd_port, peer_port)?;
        let mut server = Self { assets, folder, port, etcd_port, etcd, server: None };
        server.come_back().await?;
        Ok(server)
    }

    fn config(&self) -> kube::Config {
        let url = format!("https://127.0.0.1:{}", self.port).parse().unwrap_or_default();
        let auth_info = AuthInfo { token: Some(TOKEN.to_owned().into()), ..AuthInfo::default() };
        let mut config = kube::Config::new(url);
        // The server makes its own certificate at its first start.
        config.accept_invalid_certs = true;
        config.auth_info = auth_info;
        config
    }

    async fn go_away(&mut self) -> Result<()> {
        self.server = None;
        Ok(())
    }

    async fn come_back(&mut self) -> Result<()> {
        if self.server.is_none() {
            self.server = Some(self.start_server()?);
            self.wait_until_ready().await?;
        }
        Ok(())
    }
}

impl RealServer {
    fn start_server(&self) -> Result<Process> {
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let flags = [
            ("etcd-servers", format!("http://127.0.0.1:{}", self.etcd_port)),
            ("bind-address", "127.0.0.1".to_owned()),
            // A loopback address cannot be an endpoint, so the server's own Service stays without.
            ("advertise-address", "127.0.0.1".to_owned()),
            ("endpoint-reconciler-type", "none".to_owned()),
            ("secure-port", self.port.to_string()),
            ("cert-dir", file("certificates")),
            ("token-auth-file", file("tokens.csv")),
            ("authorization-mode", "RBAC".to_owned()),
            ("service-cluster-ip-range", "10.96.0.0/16,fd00:96::/108".to_owned()),
            ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
            ("service-account-key-file", file("accounts.key")),
            ("service-account-signing-key-file", file("accounts.key")),
            ("disable-admission-plugins", "ServiceAccount".to_owned()),
        ];
        let flags = flags.map(|(name, value)| format!("--{name}={value}"));
        spawn(Command::new(self.assets.join("kube-apiserver")).args(flags), &self.folder.path().join("server.log"))
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let mut config = self.config();
        config.default_retry = false;
        let client = kube::Client::try_from(config)?;
        let deadline = Instant::now() + PATIENCE;
        // The namespace is made a moment after the server says that it is ready.
        let mut paths = ["/readyz", "/api/v1/namespaces/default"].into_iter().peekable();
        while let Some(path) = paths.peek() {
            let request = axum::http::Request::get(*path).body(Vec::new())?;
            let Err(error) = client.request_text(request).await else {
                paths.next();
                continue;
            };
            ensure!(!self.has_ended(), "the real API server does not start: {}", self.last_words());
            if Instant::now() > deadline {
                bail!("the real API server is not ready: {error}: {}", self.last_words());
            }
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    fn has_ended(&mut self) -> bool {
        let mut processes = [Some(&mut self.etcd), self.server.as_mut()].into_iter().flatten();
        processes.any(|process| !matches!(process.0.try_wait(), Ok(None)))
    }

    fn last_words(&self) -> String {
        let logs = ["etcd.log", "server.log"].map(|name| {
            let log = fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
            log.lines().last().unwrap_or_default().to_owned()
        });
        logs.join("; ")
    }
}

fn start_etcd(assets: &Path, folder: &Path, port: u16, peer_port: u16) -> Result<Process> {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    let mut command = Command::new(assets.join("etcd"));
    command.arg("--data-dir").arg(folder.join("etcd"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client, "--listen-peer-urls", &peer]);
    // The data live no longer than the test.
    command.arg("--unsafe-no-fsync");
    spawn(&mut command, &folder.join("etcd.log"))
}

fn spawn(command: &mut Command, log: &Path) -> Result<Process> {
    let log = fs::File::options().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    Ok(Process(child))
}

/// A new key, with which the server signs the tokens of service accounts; it does not start without one.
///
/// The server takes an elliptic-curve key in SEC 1 form only, so the parts of the PKCS #8 form are put together anew.
fn account_key() -> Result<String> {
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new());
    let Ok(key) = key else { bail!("no key can be made for service accounts") };
    // For this curve every field has a fixed place: the secret number, then the public point.
    let (Some(secret), Some(point)) = (key.as_ref().get(36..68), key.as_ref().get(73..138)) else {
        bail!("the new key is not what it was expected to be");
    };
    let head: &[u8] = &[0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20];
    let curve: &[u8] = &[0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    let point_head: &[u8] = &[0xa1, 0x44, 0x03, 0x42, 0x00];
    let der = [head, secret, curve, point_head, point].concat();
    Ok(format!("-----BEGIN EC PRIVATE KEY-----\n{}\n-----END EC PRIVATE KEY-----\n", BASE64_STANDARD.encode(der)))
}

/// Ports that are free just now.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_key_is_der_of_the_length_that_it_says() -> Result<()> {
        let text = account_key()?;
        let base64: String = text.lines().filter(|line| !line.starts_with('-')).collect();
        let der = BASE64_STANDARD.decode(base64)?;
        assert_eq!(der.len(), 2 + usize::from(der[1]));
        // The uncompressed form of a point begins with four.
        assert_eq!(der[der.len() - 65], 4);
        Ok(())
    }
}
