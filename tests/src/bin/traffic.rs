//! A process that speaks for a pod, a host or an external client: requests come in, and replies go out, as JSON lines.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Write},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result};
use dataplane_tests::traffic::{
    client::{self, Open},
    load::{self, Running},
    protocol::{Failure, FailureKind, Reply, ReplyLine, Request, RequestLine},
    server,
};

/// What stays between requests.
#[derive(Default)]
struct State {
    connections: Mutex<BTreeMap<u64, Arc<Mutex<Open>>>>,
    loads: Mutex<BTreeMap<u64, Running>>,
}

fn main() -> Result<()> {
    let state = Arc::new(State::default());
    // The end of the input is the end of whoever asks, and so of this process.
    for line in io::stdin().lock().lines() {
        let RequestLine { id, request } = serde_json::from_str(&line?).context("not a request")?;
        let state = Arc::clone(&state);
        thread::spawn(move || {
            let reply = state.answer(request);
            let mut line = serde_json::to_vec(&ReplyLine { id, reply }).unwrap_or_default();
            line.push(b'\n');
            // Nobody reads any more: the end of the input follows.
            io::stdout().lock().write_all(&line).ok();
        });
    }
    Ok(())
}

impl State {
    fn answer(&self, request: Request) -> Reply {
        match request {
            Request::Serve { name, protocol, address } => match server::serve(name, protocol, address) {
                Ok(()) => Reply::Done,
                Err(error) => Reply::Failed(Failure::new(&error, std::time::Duration::ZERO)),
            },
            Request::Ask(ask) => client::ask(&ask).map_or_else(Reply::Failed, Reply::Answer),
            Request::Repeat { ask, count } => Reply::Report(load::repeat(&ask, count)),
            Request::Open { connection, ask } => match client::open(&ask) {
                Ok((open, answer)) => {
                    lock(&self.connections).insert(connection, Arc::new(Mutex::new(open)));
                    Reply::Answer(answer)
                }
                Err(failure) => Reply::Failed(failure),
            },
            Request::Ping { connection } => {
                let open = lock(&self.connections).get(&connection).cloned();
                open.map_or_else(unknown, |open| lock(&open).ping().map_or_else(Reply::Failed, Reply::Answer))
            }
            Request::Close { connection } => {
                lock(&self.connections).remove(&connection).map_or_else(unknown, |_| Reply::Done)
            }
            Request::StartLoad { load, ask, per_second } => {
                lock(&self.loads).insert(load, Running::start(&ask, per_second));
                Reply::Done
            }
            Request::FinishLoad { load } => {
                let running = lock(&self.loads).remove(&load);
                running.map_or_else(unknown, |running| Reply::Report(running.finish()))
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unknown() -> Reply {
    let text = "no such connection or load".to_owned();
    Reply::Failed(Failure { kind: FailureKind::Other, text, took: std::time::Duration::ZERO })
}
