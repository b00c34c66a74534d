//! Metrics: kube-proxy's own names where the meaning is the same, `sluice_*` for the rest.

pub mod serve;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    core::Collector, exponential_buckets,
};

/// Every metric of the agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// How long an application of changes takes.
    pub sync_duration: Histogram,
    /// When changes were last applied.
    pub sync_last: Gauge,
    /// When a change last arrived.
    pub sync_last_queued: Gauge,
    /// EndpointSlice changes that wait.
    pub endpoint_changes_pending: IntGauge,
    /// EndpointSlice changes so far.
    pub endpoint_changes_total: IntCounter,
    /// Service changes that wait.
    pub service_changes_pending: IntGauge,
    /// Service changes so far.
    pub service_changes_total: IntCounter,
    /// Service ports whose traffic policy is Local and that have endpoints, but none here.
    pub no_local_endpoints: IntGaugeVec,
    /// From the change of a pod or service to its being in force.
    pub network_programming: Histogram,
    /// Answers of `/healthz` by status.
    pub healthz: IntCounterVec,
    /// Answers of `/livez` by status.
    pub livez: IntCounterVec,
    /// Services, frontends and backends that are installed.
    pub installed: Installed,
    /// Map operations by result.
    pub map_operations: IntCounterVec,
    /// System calls for map operations.
    pub map_calls: IntCounter,
    /// Services that are not installed as they should be.
    pub sync_errors: IntGauge,
    /// What is read from the maps at each scrape.
    pub datapath: Datapath,
}

/// Gauges of what is installed.
#[derive(Debug)]
pub struct Installed {
    /// Services.
    pub services: IntGauge,
    /// Frontends.
    pub frontends: IntGauge,
    /// Backends.
    pub backends: IntGauge,
}

/// Metrics that the maps hold.
#[derive(Debug)]
pub struct Datapath {
    /// Packets dropped by reason.
    pub drops: IntCounterVec,
    /// Entries of the maps that the programs fill.
    pub map_entries: IntGaugeVec,
    /// Entries that these maps have room for.
    pub map_capacity: IntGaugeVec,
}

impl Metrics {
    /// The metrics of an agent of `version`.
    pub fn new(version: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let r = &registry;
        let metrics = Self {
            sync_duration: histogram(
                r,
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds",
                exponential_buckets(0.001, 2.0, 15)?,
            )?,
            sync_last: kept(
                r,
                Gauge::new(
                    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                    "The last time proxy rules were successfully synced",
                )?,
            )?,
            sync_last_queued: kept(
                r,
                Gauge::new(
                    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                    "The last time a sync of proxy rules was queued",
                )?,
            )?,
            endpoint_changes_pending: kept(
                r,
                IntGauge::new(
                    "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                    "Pending proxy rules Endpoint changes",
                )?,
            )?,
            endpoint_changes_total: kept(
                r,
                IntCounter::new(
                    "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                    "Cumulative proxy rules Endpoint changes",
                )?,
            )?,
            service_changes_pending: kept(
                r,
                IntGauge::new(
                    "kubeproxy_sync_proxy_rules_service_changes_pending",
                    "Pending proxy rules Service changes",
                )?,
            )?,
            service_changes_total: kept(
                r,
                IntCounter::new(
                    "kubeproxy_sync_proxy_rules_service_changes_total",
                    "Cumulative proxy rules Service changes",
                )?,
            )?,
            no_local_endpoints: kept(
                r,
                IntGaugeVec::new(
                    Opts::new(
                        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                        "Number of services with a Local traffic policy and no endpoints",
                    ),
                    &["traffic_policy"],
                )?,
            )?,
            network_programming: histogram(
                r,
                "kubeproxy_network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
                network_programming_buckets(),
            )?,
            healthz: counters(r, "kubeproxy_proxy_healthz_total", "Cumulative proxy healthz HTTP status", "code")?,
            livez: counters(r, "kubeproxy_proxy_livez_total", "Cumulative proxy livez HTTP status", "code")?,
            installed: Installed {
                services: kept(r, IntGauge::new("sluice_services", "Services that are installed")?)?,
                frontends: kept(r, IntGauge::new("sluice_frontends", "Frontends that are installed")?)?,
                backends: kept(r, IntGauge::new("sluice_backends", "Backends that are installed")?)?,
            },
            map_operations: counters(
                r,
                "sluice_map_operations_total",
                "Operations on BPF maps since the agent started",
                "result",
            )?,
            map_calls: kept(
                r,
                IntCounter::new(
                    "sluice_map_calls_total",
                    "System calls that changed BPF maps since the agent started; one may be many operations",
                )?,
            )?,
            sync_errors: kept(
                r,
                IntGauge::new(
                    "sluice_sync_errors",
                    "Services that are not installed as they should be; `sluice status` and the log say why",
                )?,
            )?,
            datapath: Datapath {
                drops: counters(
                    r,
                    "sluice_dropped_packets_total",
                    "Packets that ended here since the maps were made",
                    "reason",
                )?,
                map_entries: gauges(
                    r,
                    "sluice_map_entries",
                    "Entries of a map that packets fill, as of its last sweep; conntrack has two per flow",
                )?,
                map_capacity: gauges(
                    r,
                    "sluice_map_capacity",
                    "Entries that the map has room for; a full one forgets what was used longest ago",
                )?,
            },
            registry: registry.clone(),
        };
        let about =
            Opts::new("sluice_build_info", "The version of the agent; always 1").const_label("version", version);
        kept(&registry, IntGauge::with_opts(about)?)?.set(1);
        // So that both series exist before either condition does.
        for policy in ["internal", "external"] {
            metrics.no_local_endpoints.with_label_values(&[policy]).set(0);
        }
        for result in ["done", "failed"] {
            metrics.map_operations.with_label_values(&[result]).reset();
        }
        Ok(metrics)
    }

    /// Everything in Prometheus' text format.
    pub fn text(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Sets the counter of dropped packets to what the map says, which only grows.
    pub fn set_drops(&self, reason: &str, packets: u64) {
        let counter = self.datapath.drops.with_label_values(&[reason]);
        counter.inc_by(packets.saturating_sub(counter.get()));
    }
}

/// Now, as Prometheus counts.
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// 0.25, 0.5, 1 to 59 s by one, to 115 s by five, to five minutes by thirty: kube-proxy's.
fn network_programming_buckets() -> Vec<f64> {
    let steps = |first: u32, step: u32, count: u32| (0..count).map(move |i| f64::from(first + i * step));
    [0.25, 0.5].into_iter().chain(steps(1, 1, 59)).chain(steps(60, 5, 12)).chain(steps(120, 30, 7)).collect()
}

fn kept<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: Vec<f64>) -> prometheus::Result<Histogram> {
    kept(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?)
}

fn counters(registry: &Registry, name: &str, help: &str, label: &str) -> prometheus::Result<IntCounterVec> {
    kept(registry, IntCounterVec::new(Opts::new(name, help), &[label])?)
}

fn gauges(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGaugeVec> {
    kept(registry, IntGaugeVec::new(Opts::new(name, help), &["map"])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p75_metrics_have_kube_proxys_names() {
        let metrics = Metrics::new("1.2.3").unwrap();
        metrics.healthz.with_label_values(&["200"]).inc();
        metrics.livez.with_label_values(&["503"]).inc();
        metrics.set_drops("no_route", 7);
        metrics.set_drops("no_route", 9);
        let text = metrics.text().unwrap();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.001\"} 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"300\"} 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 0",
            "kubeproxy_sync_proxy_rules_service_changes_pending 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 0",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds 0",
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds 0",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"} 0",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"} 0",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "kubeproxy_proxy_livez_total{code=\"503\"} 1",
            "sluice_dropped_packets_total{reason=\"no_route\"} 9",
            "sluice_build_info{version=\"1.2.3\"} 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }
}
