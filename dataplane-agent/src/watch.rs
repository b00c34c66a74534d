//! Sources of change: Kubernetes watches, a folder of the same YAML, and netlink.
