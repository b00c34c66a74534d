//! The listening socket and its connections, all of which can be broken off.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result};
use axum::body::Body;
use hyper::{Request, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use super::{Bind, Shared, serve::answer};

/// A listening socket that is served.
#[derive(Debug)]
pub(super) struct Connections {
    task: JoinHandle<()>,
    /// Counts how often all connections were broken off.
    dropped: watch::Sender<u64>,
}

impl Connections {
    pub(super) fn serve(bind: &Bind, shared: Arc<Shared>) -> Result<(Self, SocketAddr)> {
        let listener = (bind.0)().context("the API server cannot listen")?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let listener = TcpListener::from_std(listener)?;
        let dropped = watch::Sender::new(0);
        let task = tokio::spawn(accept(listener, dropped.subscribe(), shared));
        Ok((Self { task, dropped }, addr))
    }

    pub(super) fn drop_all(&self) {
        self.dropped.send_modify(|count| *count += 1);
    }

    /// Closes the socket and every connection.
    pub(super) async fn stop(mut self) {
        self.task.abort();
        // It was aborted, which is the only error there is.
        (&mut self.task).await.ok();
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, mut dropped: watch::Receiver<u64>, shared: Arc<Shared>) {
    // Ends its tasks, and with them their sockets, when it is dropped.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((socket, _)) = accepted else { continue };
                // As kube-apiserver's: an event would wait for the acknowledgement of the one before, which a client delays by 40 ms.
                socket.set_nodelay(true).ok();
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(|request: Request<hyper::body::Incoming>| {
                        let shared = Arc::clone(&shared);
                        async move { Ok::<_, Infallible>(answer(shared, request.map(Body::new)).await) }
                    });
                    let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(socket), service);
                    // A client that goes away is its own business.
                    connection.await.ok();
                });
            }
            Ok(()) = dropped.changed() => connections.shutdown().await,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}
