//! What a scenario measures: the provider itself, our engine in a mode, or a server that somebody else started.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use hyper::{HeaderMap, Uri, header::HeaderName};
use serde::Deserialize;
use tokio::time::sleep;

use crate::{
    caller::Endpoint,
    counts::Counts,
    engine::Engine,
    load::{self, Seen},
    process,
    report::Figures,
};

/// How long a target is called before it is measured, at most.
const WARM_UP: Duration = Duration::from_secs(1);
/// Until what was batched is written, so that it counts for the runs that it belongs to.
const SETTLE: Duration = Duration::from_millis(700);

/// A server that already runs, as a file says: name, URL, headers, bodies, process ids.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extra {
    pub name: String,
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// What it is sent, by scenario: it is left out of those that have none.
    bodies: BTreeMap<String, String>,
    /// Its processes; their children count too.
    #[serde(default)]
    pids: Vec<u32>,
}

impl Extra {
    pub fn read(file: &Path) -> anyhow::Result<Vec<Self>> {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let extras: Vec<Self> = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        for extra in &extras {
            if let Some(gone) = extra.pids.iter().find(|&&pid| !process::is_there(pid)) {
                bail!("{}: {} has no process {gone}", file.display(), extra.name);
            }
        }
        Ok(extras)
    }

    fn endpoint(&self) -> anyhow::Result<Endpoint> {
        let url: Uri = self.url.parse()?;
        let authority = url.authority().context("a URL with a host and a port")?;
        let address: SocketAddr = authority.as_str().parse().context("an address and a port on this machine")?;
        let mut endpoint = Endpoint::new(address, url.path_and_query().map_or("/", |path| path.as_str()))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.insert(HeaderName::try_from(name)?, value.parse()?);
        }
        endpoint.headers.extend(headers);
        Ok(endpoint)
    }
}

/// Whose requests are sent.
pub enum Subject<'a> {
    Provider,
    Engine(&'a Engine),
    Extra(&'a Extra),
}

/// A subject, where its requests go, and what they say.
pub struct Target<'a> {
    pub subject: Subject<'a>,
    pub endpoint: Endpoint,
    pub body: Bytes,
}

impl<'a> Target<'a> {
    pub fn engine(engine: &'a Engine, body: Bytes) -> anyhow::Result<Self> {
        Ok(Self { endpoint: engine.endpoint()?, subject: Subject::Engine(engine), body })
    }

    /// The provider itself: what the same call costs without anything in between.
    pub fn provider(address: SocketAddr, model: &str, stream: bool) -> anyhow::Result<Self> {
        let body = format!(
            r#"{{"model":"{model}","messages":[{{"role":"user","content":"Écris un courriel de bienvenue."}}],"stream":{stream}}}"#
        );
        let endpoint = Endpoint::new(address, "/v1/chat/completions")?;
        Ok(Self { subject: Subject::Provider, endpoint, body: Bytes::from(body) })
    }

    /// `None`: the server has no part in the scenario.
    pub fn extra(extra: &'a Extra, scenario: &str) -> anyhow::Result<Option<Self>> {
        let Some(body) = extra.bodies.get(scenario) else { return Ok(None) };
        let body = Bytes::from(body.clone());
        Ok(Some(Self { endpoint: extra.endpoint()?, subject: Subject::Extra(extra), body }))
    }

    pub fn name(&self) -> &str {
        match &self.subject {
            Subject::Provider => "direct",
            Subject::Engine(engine) => engine.mode.as_str(),
            Subject::Extra(extra) => &extra.name,
        }
    }

    fn processes(&self) -> Vec<u32> {
        match &self.subject {
            Subject::Provider => Vec::new(),
            Subject::Engine(engine) => process::family(&engine.processes()),
            Subject::Extra(extra) => process::family(&extra.pids),
        }
    }

    async fn counts(&self) -> anyhow::Result<Option<Counts>> {
        Ok(match &self.subject {
            Subject::Provider => None,
            Subject::Engine(engine) => Some(Counts::of(engine).await?),
            Subject::Extra(extra) if extra.pids.is_empty() => None,
            Subject::Extra(extra) => Some(Counts::of_processes(&extra.pids)),
        })
    }

    /// Lets so many callers call for so long, and says what that took.
    pub async fn measure(
        &self,
        callers: usize,
        length: Duration,
        direct: Option<&Figures>,
    ) -> anyhow::Result<(Figures, Seen)> {
        self.measured(async || load::closed_loop(&self.endpoint, &self.body, callers, length).await, direct).await
    }

    /// The same before it counts: connections, caches and prepared statements are there afterwards.
    pub async fn warm_up(&self, callers: usize, length: Duration) -> anyhow::Result<()> {
        let length = length.min(WARM_UP);
        load::closed_loop(&self.endpoint, &self.body, callers, length).await?.clean().context("warming up")?;
        sleep(SETTLE).await;
        Ok(())
    }

    /// Makes any load, and says what that took.
    pub async fn measured(
        &self,
        work: impl AsyncFnOnce() -> anyhow::Result<Seen>,
        direct: Option<&Figures>,
    ) -> anyhow::Result<(Figures, Seen)> {
        let processes = self.processes();
        process::forget_peaks(&processes);
        let before = self.counts().await?;
        let seen = work().await?;
        let mut figures = Figures::default();
        figures.set("per_second", seen.per_second());
        figures.set_latency(&seen, direct);
        if let Some(before) = before {
            sleep(SETTLE).await;
            if let Some(after) = self.counts().await? {
                after.since(&before, seen.count(), &mut figures);
                eprint!("{}", after.detail(&before, seen.count()).unwrap_or_default());
            }
            figures.set("peak_mib", process::peak_memory(&processes) / (1024.0 * 1024.0));
        }
        Ok((figures, seen))
    }
}
