//! The folder of Kubernetes YAML that a cluster's agents read.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Cluster;
use crate::objects::{self, Endpoint, Service};

impl Cluster {
    /// Writes a service with its endpoints, replacing what there was.
    pub fn put_service(&self, service: &Service, endpoints: &[Endpoint]) -> Result<()> {
        self.put_manifest(&service.name, &service.objects(endpoints))
    }

    /// Removes a service with its endpoints.
    pub fn delete_service(&self, service: &Service) -> Result<()> {
        self.delete_manifest(&service.name)
    }

    /// Writes the Node objects.
    pub fn put_nodes(&self) -> Result<()> {
        self.put_manifest("nodes", &objects::nodes(self))
    }

    /// Writes `objects` to the file `name`, at once: it is never seen half written.
    pub fn put_manifest(&self, name: &str, objects: &[Value]) -> Result<()> {
        let mut text = String::new();
        for object in objects {
            text.push_str("---\n");
            text.push_str(&serde_norway::to_string(object)?);
        }
        self.put_text(name, &text)
    }

    /// Writes the file `name` as it is given.
    pub fn put_text(&self, name: &str, text: &str) -> Result<()> {
        // Beside the folder, which is on the same file system: the agent sees the rename only.
        let draft = self.directory().join(format!("{name}.draft"));
        let path = self.manifests.join(format!("{name}.yaml"));
        fs::write(&draft, text).with_context(|| format!("cannot write {}", draft.display()))?;
        fs::rename(&draft, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the file `name`.
    pub fn delete_manifest(&self, name: &str) -> Result<()> {
        let path = self.manifests.join(format!("{name}.yaml"));
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}
