//! The last good state of every file in a folder, and the objects that they define together.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
};

use tracing::{error, info, warn};

use super::{
    FileError,
    documents::{Object, ParseError, parse_json, parse_yaml},
};
use crate::{
    model::Change,
    watch::{
        Converted,
        kind::{EndpointSlices, Kind, Nodes, ServiceCidrs, Services},
        store::Store,
    },
};

/// A file that cannot be used as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {problem}", path.display(), place(problem))]
pub struct FileProblem {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// It cannot be parsed.
    #[error("{0}")]
    Broken(#[from] ParseError),
    /// An object has no name.
    #[error("document {document}: the {kind} has no metadata.name")]
    Nameless {
        /// The document within the file, counted from one.
        document: usize,
        /// The object's kind.
        kind: &'static str,
    },
}

fn place(problem: &Problem) -> String {
    match problem {
        Problem::Broken(ParseError { at: Some((line, column)), .. }) => format!(":{line}:{column}"),
        _ => String::new(),
    }
}

/// Reads a folder once and says which of its files cannot be used.
///
/// # Errors
///
/// When the folder itself cannot be read.
pub fn check(folder: &Path) -> Result<Vec<FileProblem>, FileError> {
    let mut problems = Vec::new();
    for path in list(folder)? {
        if let Some(Err(problem)) = read_text(&path).map(|text| text.and_then(|text| parse(&path, &text))) {
            problems.push(FileProblem { path, problem });
        }
    }
    Ok(problems)
}

/// One folder and what has been sent of it.
pub(super) struct Folder {
    path: PathBuf,
    node: String,
    files: BTreeMap<PathBuf, File>,
    services: Store<Services>,
    endpoint_slices: Store<EndpointSlices>,
    nodes: Store<Nodes>,
    service_cidrs: Store<ServiceCidrs>,
    /// Objects defined twice that have been reported.
    clashes: BTreeSet<String>,
}

#[derive(Default)]
struct File {
    /// A digest of the text last looked at; `None` before the first and after a failed read.
    digest: Option<u64>,
    /// What the file last held when it was good; `None` when it never was.
    good: Option<Contents>,
    problem: Option<Problem>,
}

/// The objects of one file.
#[derive(Debug, Default)]
struct Contents {
    services: Vec<Defined<Services>>,
    endpoint_slices: Vec<Defined<EndpointSlices>>,
    nodes: Vec<Defined<Nodes>>,
    service_cidrs: Vec<Defined<ServiceCidrs>>,
}

/// One object as a file defines it.
#[derive(Debug)]
struct Defined<K: Kind> {
    document: usize,
    name: K::Name,
    converted: Converted<K::Value>,
}

impl Folder {
    pub(super) fn new(path: PathBuf, node: &str) -> Self {
        Self {
            path,
            node: node.to_owned(),
            files: BTreeMap::new(),
            services: Store::new(),
            endpoint_slices: Store::new(),
            nodes: Store::new(),
            service_cidrs: Store::new(),
            clashes: BTreeSet::new(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether every file has been good at least once.
    pub(super) fn is_complete(&self) -> bool {
        self.files.values().all(|file| file.good.is_some())
    }

    /// Reads every file whose text has changed; on error nothing is touched.
    pub(super) fn read(&mut self) -> Result<(), FileError> {
        let paths = list(&self.path)?;
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            match read_text(&path) {
                Some(text) => self.files.entry(path.clone()).or_default().update(&path, text),
                // Gone between the listing and now.
                None => drop(self.files.remove(&path)),
            }
        }
        Ok(())
    }

    /// What the files now say that they did not say before.
    pub(super) fn changes(&mut self) -> Vec<Change> {
        let mut clashes = BTreeSet::new();
        let files = &self.files;
        let mut changes = merge(files, |file| &file.nodes, &mut self.nodes, &mut clashes, |name| *name == self.node);
        changes.extend(merge(files, |file| &file.service_cidrs, &mut self.service_cidrs, &mut clashes, |_| true));
        changes.extend(merge(files, |file| &file.services, &mut self.services, &mut clashes, |_| true));
        changes.extend(merge(files, |file| &file.endpoint_slices, &mut self.endpoint_slices, &mut clashes, |_| true));
        for clash in clashes.difference(&self.clashes) {
            error!("{clash}");
        }
        self.clashes = clashes;
        changes
    }
}

impl File {
    fn update(&mut self, path: &Path, text: Result<String, Problem>) {
        let digest = text.as_ref().ok().map(|text| {
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            hasher.finish()
        });
        if digest.is_some() && digest == self.digest {
            return;
        }
        self.digest = digest;
        match text.and_then(|text| parse(path, &text)) {
            Ok(contents) => {
                if self.problem.take().is_some() {
                    info!("{}: good again", path.display());
                }
                self.good = Some(contents);
            }
            Err(problem) if self.problem.as_ref() == Some(&problem) => {}
            Err(problem) => {
                let kept =
                    if self.good.is_some() { "its last good state is kept" } else { "it is ignored until it is good" };
                warn!("{}; {kept}", FileProblem { path: path.to_owned(), problem: problem.clone() });
                self.problem = Some(problem);
            }
        }
    }
}

/// Brings `store` up to what the files define; the first file by name wins.
fn merge<K: Kind>(
    files: &BTreeMap<PathBuf, File>,
    objects: impl Fn(&Contents) -> &Vec<Defined<K>>,
    store: &mut Store<K>,
    clashes: &mut BTreeSet<String>,
    counts: impl Fn(&K::Name) -> bool,
) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut owners: BTreeMap<&K::Name, (&Path, usize)> = BTreeMap::new();
    store.begin_list();
    for (path, file) in files {
        for Defined { document, name, converted } in file.good.iter().flat_map(&objects) {
            if let Some((owner, first)) = owners.get(name) {
                clashes.insert(format!(
                    "{} {name} is defined twice: in {} (document {first}), which counts, and in {} (document {document})",
                    K::NAME,
                    owner.display(),
                    path.display(),
                ));
                continue;
            }
            owners.insert(name, (path, *document));
            if counts(name) {
                changes.extend(store.apply(name.clone(), converted.clone()));
            }
        }
    }
    changes.extend(store.end_list());
    changes
}

/// The files that count, by name.
fn list(folder: &Path) -> Result<BTreeSet<PathBuf>, FileError> {
    let failed = |source| unreadable(folder, source);
    let mut paths = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let known = ["yaml", "yml", "json"].iter().any(|known| path.extension() == Some(OsStr::new(known)));
        if known && !hidden {
            paths.insert(path);
        }
    }
    Ok(paths)
}

/// The error for a folder that cannot be looked into.
pub(super) fn unreadable(folder: &Path, source: io::Error) -> FileError {
    let folder = folder.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => FileError::Missing { folder },
        io::ErrorKind::NotADirectory => FileError::NotAFolder { folder },
        _ => FileError::Unreadable { folder, source },
    }
}

/// The file's text; `None` when there is no such file any more.
fn read_text(path: &Path) -> Option<Result<String, Problem>> {
    match fs::read_to_string(path) {
        Ok(text) => Some(Ok(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(Problem::Unreadable(error.to_string()))),
    }
}

fn parse(path: &Path, text: &str) -> Result<Contents, Problem> {
    let is_json = path.extension() == Some(OsStr::new("json"));
    let objects = if is_json { parse_json(text) } else { parse_yaml(text) }?;
    let mut contents = Contents::default();
    for (document, object) in objects {
        match object {
            Object::Service(object) => contents.services.push(define(document, &*object)?),
            Object::EndpointSlice(object) => contents.endpoint_slices.push(define(document, &*object)?),
            Object::ServiceCidr(object) => contents.service_cidrs.push(define(document, &*object)?),
            Object::Node(object) => contents.nodes.push(define(document, &*object)?),
        }
    }
    Ok(contents)
}

fn define<K: Kind>(document: usize, object: &K::Object) -> Result<Defined<K>, Problem> {
    let nameless = Problem::Nameless { document, kind: K::NAME };
    let name = K::name(kube::Resource::meta(object)).ok_or(nameless)?;
    Ok(Defined { document, name, converted: K::convert(object) })
}
