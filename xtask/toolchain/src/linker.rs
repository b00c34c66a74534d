//! `bpf-linker`, which makes one BPF object of the compiler's bitcode; it must know the bitcode of the compiler's LLVM.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use crate::{Compiler, Search, clean};

/// The release that the programs are tested with.
pub const LINKER_VERSION: &str = "0.13.0";

/// A linker that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linker {
    /// The program.
    pub path: PathBuf,
    /// As in `0.13.0`.
    pub version: String,
}

/// Why none of the linkers that were looked at will do.
#[derive(Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct NoLinker {
    /// Each linker with what is wrong with it.
    pub seen: Vec<(PathBuf, String)>,
}

impl fmt::Display for NoLinker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no bpf-linker {LINKER_VERSION} in $PATH or cargo's bin folder")?;
        for (path, lack) in &self.seen {
            write!(f, "\n    {}: {lack}", path.display())?;
        }
        Ok(())
    }
}

/// The first of `$BPF_LINKER`, cargo's bin folder and `$PATH` that will do for `compiler`.
///
/// # Errors
/// With what is wrong with each of them.
pub fn linker(search: &Search, compiler: &Compiler) -> Result<Linker, NoLinker> {
    let folders = search.cargo_home.iter().map(|home| home.join("bin")).chain(search.path.iter().cloned());
    let candidates: Vec<PathBuf> = match &search.linker {
        Some(path) => vec![path.clone()],
        None => folders.map(|folder| folder.join("bpf-linker")).filter(|path| path.is_file()).collect(),
    };
    let mut none = NoLinker::default();
    for path in candidates {
        match inspect(&path, compiler) {
            Ok(found) => return Ok(found),
            Err(lack) => none.seen.push((path, lack)),
        }
    }
    none.seen.dedup();
    Err(none)
}

fn inspect(path: &Path, compiler: &Compiler) -> Result<Linker, String> {
    if !path.is_file() {
        return Err("there is no such file".into());
    }
    let output = clean(path).arg("--version").output().map_err(|error| format!("does not run: {error}"))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(format!("does not run: {}", reason.lines().next().unwrap_or("no reason given")));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    let version = version.ok_or("does not say its version")?;
    if version != LINKER_VERSION {
        return Err(format!("is {version}, not {LINKER_VERSION}"));
    }
    match llvm_of(path) {
        Some(llvm) if llvm < compiler.llvm => Err(format!(
            "uses LLVM {llvm}, which cannot read the bitcode of LLVM {} ({})",
            compiler.llvm,
            compiler.rustc.display()
        )),
        _ => Ok(Linker { path: path.into(), version: version.into() }),
    }
}

/// The major version in the name of the LLVM library that a dynamically linked linker asks for; `None` when it is static.
fn llvm_of(path: &Path) -> Option<u32> {
    const SONAME: &[u8] = b"libLLVM";
    let file = fs::read(path).ok()?;
    file.windows(SONAME.len()).enumerate().filter(|(_, window)| *window == SONAME).find_map(|(at, _)| {
        // `libLLVM.so.22.1` or `libLLVM-22.so.1`.
        let name = file[at + SONAME.len()..].split(|byte| *byte < 0x20).next()?;
        let name = std::str::from_utf8(name.get(..name.len().min(16))?).ok()?;
        let digits = name.strip_prefix(".so.").or_else(|| name.strip_prefix('-'))?;
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script;

    /// What is said about a linker of `version` whose file mentions `library`, for a compiler of LLVM 22.
    #[track_caller]
    fn check(version: &str, library: &str, expected: Result<(), &str>) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("bpf-linker");
        script::write(&path, &format!("echo bpf-linker {version}\nexit 0\n{library}\u{1}"));
        let compiler = Compiler { rustc: "/r".into(), cargo: "/c".into(), version: "1.96.0".into(), llvm: 22 };
        let search = Search { path: vec![root.path().into()], ..Search::default() };
        let found = linker(&search, &compiler).map(|_| ()).map_err(|none| none.seen[0].1.clone());
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    #[test]
    fn the_tested_release_is_taken_whether_its_llvm_is_shared_or_static() {
        check("0.13.0", "libLLVM.so.22.1", Ok(()));
        check("0.13.0", "libLLVM-22.so.1", Ok(()));
        check("0.13.0", "", Ok(()));
    }

    #[test]
    fn another_release_or_an_older_llvm_is_refused() {
        check("0.9.15", "libLLVM.so.22.1", Err("is 0.9.15, not 0.13.0"));
        check("0.13.0", "libLLVM.so.21.1", Err("uses LLVM 21, which cannot read the bitcode of LLVM 22 (/r)"));
    }
}
