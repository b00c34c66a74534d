//! The Rust compiler for the BPF target: any that is recent enough and has the source of `core` beside it.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{Search, clean};

/// The oldest compiler, as in `rust-version` of the workspace.
pub const MIN_RUST: (u32, u32) = (1, 95);

/// A compiler that can build for the BPF target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    /// The compiler itself, never a proxy.
    pub rustc: PathBuf,
    /// The cargo beside it.
    pub cargo: PathBuf,
    /// As in `1.96.0`.
    pub version: String,
    /// Major version of the LLVM whose bitcode it writes.
    pub llvm: u32,
}

/// Why none of the compilers that were looked at will do.
#[derive(Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct NoCompiler {
    /// Each compiler with what it lacks.
    pub seen: Vec<(PathBuf, String)>,
}

impl fmt::Display for NoCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = MIN_RUST;
        write!(f, "no Rust compiler of at least {major}.{minor} that has its library source beside it")?;
        for (rustc, lack) in &self.seen {
            write!(f, "\n    {}: {lack}", rustc.display())?;
        }
        Ok(())
    }
}

/// The first of `$BPF_RUSTC`, rustup's toolchains and the distribution's compilers that will do.
///
/// # Errors
/// With what each of them lacks.
pub fn compiler(search: &Search) -> Result<Compiler, NoCompiler> {
    let mut none = NoCompiler::default();
    for rustc in candidates(search) {
        match inspect(&rustc) {
            Ok(found) => return Ok(found),
            Err(lack) => none.seen.push((rustc, lack)),
        }
    }
    Err(none)
}

fn candidates(search: &Search) -> Vec<PathBuf> {
    if let Some(rustc) = &search.rustc {
        return vec![rustc.clone()];
    }
    let mut toolchains: Vec<PathBuf> = search
        .rustup_home
        .iter()
        .filter_map(|home| fs::read_dir(home.join("toolchains")).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    // Nightlies, then stable, then pinned versions: the newest first in each group.
    toolchains.sort_by_key(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name.starts_with("nightly"), name)
    });
    toolchains.reverse();
    let mut found: Vec<PathBuf> = toolchains.iter().map(|path| path.join("bin/rustc")).collect();
    let mut folders = Vec::new();
    for folder in search.distribution.iter().chain(&search.path) {
        // `/bin` is a link to `/usr/bin`: one compiler, one line.
        let folder = fs::canonicalize(folder).unwrap_or_else(|_missing| folder.clone());
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    for folder in folders {
        let rustc = folder.join("rustc");
        if rustc.exists() && !is_rustup_proxy(&rustc) {
            found.push(rustc);
        }
    }
    found
}

/// A proxy is a link to, or a hard link of, the `rustup` beside it: it picks a toolchain by folder and environment, which is not
/// for us.
fn is_rustup_proxy(rustc: &Path) -> bool {
    let inode = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    inode(rustc).is_some() && inode(rustc) == inode(&rustc.with_file_name("rustup"))
        || fs::canonicalize(rustc).is_ok_and(|path| path.file_name().is_some_and(|name| name == "rustup"))
}

fn inspect(rustc: &Path) -> Result<Compiler, String> {
    if !rustc.is_file() {
        return Err("there is no such file".into());
    }
    let prefix = rustc.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    if !prefix.join("lib/rustlib/src/rust/library/core").is_dir() {
        return Err("its library source (rust-src) is not installed".into());
    }
    let cargo = rustc.with_file_name("cargo");
    if !cargo.is_file() {
        return Err("there is no cargo beside it".into());
    }
    let output = clean(rustc).arg("-vV").output().map_err(|error| format!("does not run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let version = field("release:").ok_or("does not say its version")?;
    let llvm = field("LLVM version:").and_then(|llvm| llvm.split('.').next()?.parse().ok());
    let llvm = llvm.ok_or("does not say its LLVM version")?;
    let (major, minor) = MIN_RUST;
    if !at_least(version, MIN_RUST) {
        return Err(format!("is {version}, older than {major}.{minor}"));
    }
    Ok(Compiler { rustc: rustc.into(), cargo, version: version.into(), llvm })
}

/// Whether `version`, as in `1.96.0-nightly`, is at least `min`.
#[must_use]
pub fn at_least(version: &str, min: (u32, u32)) -> bool {
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= min
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::script;

    /// A compiler that says `version` and has its source, under `prefix`.
    fn install(prefix: &Path, version: &str) {
        fs::create_dir_all(prefix.join("bin")).unwrap();
        fs::create_dir_all(prefix.join("lib/rustlib/src/rust/library/core")).unwrap();
        let says = format!("echo release: {version}\necho LLVM version: 22.1.8");
        for name in ["rustc", "cargo"] {
            script::write(&prefix.join("bin").join(name), &says);
        }
    }

    fn search(root: &Path) -> Search {
        Search {
            rustup_home: Some(root.join("rustup")),
            distribution: vec![root.join("usr/bin")],
            path: vec![root.join("proxies"), root.join("usr/bin")],
            ..Search::default()
        }
    }

    #[test]
    fn a_nightly_with_its_source_comes_before_the_distribution() {
        let root = tempfile::tempdir().unwrap();
        install(&root.path().join("usr"), "1.96.0");
        install(&root.path().join("rustup/toolchains/stable-x"), "1.96.0");
        install(&root.path().join("rustup/toolchains/nightly-x"), "1.97.0-nightly");
        assert_eq!(compiler(&search(root.path())).unwrap().version, "1.97.0-nightly");
    }

    #[test]
    fn a_toolchain_without_source_is_passed_over_for_the_distribution() {
        let root = tempfile::tempdir().unwrap();
        install(&root.path().join("usr"), "1.96.0");
        let nightly = root.path().join("rustup/toolchains/nightly-x");
        install(&nightly, "1.97.0-nightly");
        fs::remove_dir_all(nightly.join("lib")).unwrap();
        let found = compiler(&search(root.path())).unwrap();
        assert_eq!((found.rustc, found.llvm), (root.path().join("usr/bin/rustc"), 22));
    }

    #[test]
    fn an_old_compiler_and_a_rustup_proxy_are_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        install(&root.path().join("usr"), "1.63.0");
        fs::create_dir_all(root.path().join("proxies")).unwrap();
        fs::write(root.path().join("proxies/rustup"), "").unwrap();
        symlink("rustup", root.path().join("proxies/rustc")).unwrap();
        let none = compiler(&search(root.path())).unwrap_err();
        assert_eq!(none.seen, [(root.path().join("usr/bin/rustc"), "is 1.63.0, older than 1.95".to_owned())]);
    }

    #[test]
    fn the_oldest_compiler_is_the_workspaces_rust_version() {
        let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml")).unwrap();
        let (major, minor) = MIN_RUST;
        assert!(manifest.contains(&format!("rust-version = \"{major}.{minor}\"")));
    }
}
