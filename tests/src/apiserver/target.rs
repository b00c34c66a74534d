//! What the path of a request names.

/// A kind of object that the server keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Services.
    Services,
    /// EndpointSlices.
    EndpointSlices,
    /// Nodes.
    Nodes,
    /// ServiceCIDRs.
    ServiceCidrs,
    /// Events.
    Events,
}

impl Resource {
    /// Every resource.
    pub const ALL: [Self; 5] = [Self::Services, Self::EndpointSlices, Self::Nodes, Self::ServiceCidrs, Self::Events];

    /// The resource with objects of `kind`.
    #[must_use]
    pub fn of_kind(api_version: &str, kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| (resource.api_version(), resource.kind()) == (api_version, kind))
    }

    /// `apiVersion` of its objects.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::EndpointSlices => "discovery.k8s.io/v1",
            Self::ServiceCidrs => "networking.k8s.io/v1",
            Self::Events => "events.k8s.io/v1",
            Self::Services | Self::Nodes => "v1",
        }
    }

    /// `kind` of its objects.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::Nodes => "Node",
            Self::ServiceCidrs => "ServiceCIDR",
            Self::Events => "Event",
        }
    }

    /// The word in paths.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Nodes => "nodes",
            Self::ServiceCidrs => "servicecidrs",
            Self::Events => "events",
        }
    }

    /// Whether its objects live in namespaces.
    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Nodes | Self::ServiceCidrs)
    }
}

/// What a path names: a collection, an object, or an object's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) resource: Resource,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) is_status: bool,
}

impl Target {
    pub(super) fn parse(path: &str) -> Option<Self> {
        let mut rest = Vec::from_iter(path.split('/').skip(1));
        let api_version = match *rest.first()? {
            "api" => rest.drain(..2.min(rest.len())).skip(1).collect::<Vec<_>>().join("/"),
            "apis" => rest.drain(..3.min(rest.len())).skip(1).collect::<Vec<_>>().join("/"),
            _ => return None,
        };
        let (namespace, rest) = match rest.as_slice() {
            ["namespaces", namespace, rest @ ..] => (Some((*namespace).to_owned()), rest),
            rest => (None, rest),
        };
        let (plural, rest) = rest.split_first()?;
        let resource = Resource::ALL.into_iter().find(|r| (r.plural(), r.api_version()) == (*plural, &*api_version))?;
        let (name, is_status) = match rest {
            [] => (None, false),
            [name] => (Some((*name).to_owned()), false),
            [name, "status"] => (Some((*name).to_owned()), true),
            _ => return None,
        };
        let is_complete = name.is_none() || namespace.is_some() == resource.is_namespaced();
        is_complete.then_some(Self { resource, namespace, name, is_status })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_collections_objects_and_their_status() {
        let show = |path: &str| {
            let target = Target::parse(path)?;
            let Target { resource, namespace, name, is_status } = target;
            Some(format!("{resource:?} {namespace:?} {name:?} {is_status}"))
        };
        assert_eq!(show("/api/v1/services").as_deref(), Some("Services None None false"));
        assert_eq!(show("/api/v1/nodes/a/status").as_deref(), Some("Nodes None Some(\"a\") true"));
        assert_eq!(
            show("/apis/discovery.k8s.io/v1/namespaces/n/endpointslices/a").as_deref(),
            Some("EndpointSlices Some(\"n\") Some(\"a\") false")
        );
        for path in ["/", "/api", "/api/v1", "/api/v1/pods", "/api/v1/services/a", "/apis/v1/services", "/version"] {
            assert_eq!(show(path), None, "{path}");
        }
    }
}
