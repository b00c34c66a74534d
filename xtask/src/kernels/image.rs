//! The files that a kernel finds in memory when it starts: programs with their libraries, packed as it expects them.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// What the kernel runs first.
const INIT: &str = include_str!("init.sh");

/// A folder that becomes an archive.
pub(super) struct Image {
    root: PathBuf,
    /// A static busybox.
    shell: PathBuf,
    /// Paths in it, in the order of an archive: folders before what is in them.
    paths: Vec<String>,
}

impl Image {
    /// A folder at `root`, whatever was there, with `shell` and what the kernel runs with it.
    pub(super) fn begin(root: &Path, shell: &Path) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(root).with_context(|| format!("cannot remove {}", root.display()))?;
        }
        fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
        let mut image = Self { root: root.to_owned(), shell: shell.to_owned(), paths: Vec::new() };
        image.executable("bin/busybox", |path| Ok(fs::copy(shell, path).map(drop)?))?;
        symlink("busybox", image.place("bin/sh")?)?;
        image.executable("init", |path| Ok(fs::write(path, INIT)?))?;
        Ok(image)
    }

    /// Puts `program` at `at`, without what only debuggers read, and the libraries that it needs where it looks for them.
    pub(super) fn program(&mut self, program: &Path, at: &str) -> Result<()> {
        for library in libraries(program)? {
            let at = library.strip_prefix("/").unwrap_or(&library).to_string_lossy().into_owned();
            if !self.paths.contains(&at) {
                self.executable(&at, |path| Ok(fs::copy(&library, path).map(drop)?))?;
            }
        }
        self.executable(at, |path| {
            let output = Command::new("strip").arg("--strip-debug").arg("-o").args([path, program]).output();
            let output = output.context("cannot run strip (package binutils)")?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
            Ok(())
        })
        .with_context(|| format!("cannot copy {}", program.display()))
    }

    /// Puts the files of `folder` at `at`.
    pub(super) fn folder(&mut self, folder: &Path, at: &str) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let (path, name) = {
                let entry = entry?;
                (entry.path(), entry.file_name())
            };
            let at = format!("{at}/{}", name.to_string_lossy());
            if path.is_dir() {
                self.folder(&path, &at)?;
            } else {
                self.bytes(&at, &fs::read(&path)?)?;
            }
        }
        Ok(())
    }

    /// Puts a file at `at`.
    pub(super) fn bytes(&mut self, at: &str, content: &[u8]) -> Result<()> {
        let path = self.place(at)?;
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Puts a text at `at`.
    pub(super) fn text(&mut self, at: &str, content: &str) -> Result<()> {
        self.bytes(at, content.as_bytes())
    }

    /// Packs everything into `archive`, in the format that kernels unpack (`newc`).
    pub(super) fn pack(&self, archive: &Path) -> Result<()> {
        let output = File::create(archive).with_context(|| format!("cannot write {}", archive.display()))?;
        let mut cpio = Command::new(&self.shell)
            .args(["cpio", "-o", "-H", "newc"])
            .current_dir(&self.root)
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run busybox")?;
        if let Some(mut names) = cpio.stdin.take() {
            names.write_all(self.paths.join("\n").as_bytes())?;
        }
        ensure!(cpio.wait()?.success(), "cpio cannot pack {}", self.root.display());
        Ok(())
    }

    fn executable(&mut self, at: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let path = self.place(at)?;
        write(&path)?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
    }

    /// The path of what will be at `at`; its folder is there then.
    fn place(&mut self, at: &str) -> Result<PathBuf> {
        let path = self.root.join(at);
        let mut folders: Vec<&Path> = Path::new(at).ancestors().skip(1).filter(|path| *path != Path::new("")).collect();
        folders.reverse();
        for folder in folders.into_iter().map(|folder| folder.to_string_lossy().into_owned()) {
            if !self.paths.contains(&folder) {
                fs::create_dir(self.root.join(&folder)).with_context(|| format!("cannot create {folder}"))?;
                self.paths.push(folder);
            }
        }
        self.paths.push(at.to_owned());
        Ok(path)
    }
}

/// The shared libraries of `program` and the program that loads them; none for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).env("LC_ALL", "C").output().context("cannot run ldd")?;
    // It fails for a static program, which is as good.
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(library).collect())
}

/// The path in a line of `ldd`: `libc.so.6 => /lib/libc.so.6 (0x…)`, or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library(line: &str) -> Option<PathBuf> {
    line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_that_ldd_prints() {
        let path = |line| library(line).map(|path| path.display().to_string());
        assert_eq!(path("\tlibc.so.6 => /lib/libc.so.6 (0x00007f)").as_deref(), Some("/lib/libc.so.6"));
        assert_eq!(path("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)").as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(path("\tlinux-vdso.so.1 (0x00007f)"), None);
        assert_eq!(path("\tnot a dynamic executable"), None);
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let shell = folder.path().join("shell");
        fs::write(&shell, "").unwrap();
        let mut image = Image::begin(&folder.path().join("image"), &shell).unwrap();
        image.text("a/b/c", "c").unwrap();
        image.text("a/d", "d").unwrap();
        assert_eq!(image.paths, ["bin", "bin/busybox", "bin/sh", "init", "a", "a/b", "a/b/c", "a/d"]);
    }
}
