//! Modules of a kernel: which ones the suites need, and in which order they load.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{image::Image, release::Kernel};

/// What the suites need. Nothing in the emulator loads modules on demand, so that algorithms which others ask for by name are here, too.
const NEEDED: &[&str] = &[
    "veth",
    "bridge",
    "8021q",
    "sch_ingress",
    "cls_bpf",
    "crc32c_generic",
    "hmac",
    "sha1_generic",
    "sctp",
    "nf_tables",
];

/// Puts the modules into `image`, and a list of them that names each one after those that it depends on.
pub(super) fn put(kernel: &Kernel, image: &mut Image) -> Result<()> {
    let folder = kernel.modules();
    let builtin = fs::read_to_string(folder.join("modules.builtin"))
        .with_context(|| format!("{} has no list of what is built in", folder.display()))?;
    let builtin: Vec<String> = builtin.lines().map(|line| name(Path::new(line))).collect();
    let mut files = BTreeMap::new();
    collect(&folder.join("kernel"), &mut files)?;
    let mut contents = BTreeMap::new();
    let order = order(NEEDED, |module| {
        if builtin.iter().any(|name| name == module) {
            return Ok(None);
        }
        let path = files.get(module).with_context(|| format!("Linux {} has no module {module}", kernel.release))?;
        let content = read(path)?;
        let depends = depends(&content);
        contents.insert(module.to_owned(), content);
        Ok(Some(depends))
    })?;
    for (module, content) in &contents {
        image.bytes(&format!("modules/{module}.ko"), content)?;
    }
    image.text("modules/order", &order.iter().map(|module| format!("{module}\n")).collect::<String>())
}

/// The modules `wanted` and all that they depend on, each after its dependencies. `depends` says `None` of one that is built in.
fn order(wanted: &[&str], mut depends: impl FnMut(&str) -> Result<Option<Vec<String>>>) -> Result<Vec<String>> {
    fn visit(
        module: &str,
        seen: &mut Vec<String>,
        order: &mut Vec<String>,
        depends: &mut impl FnMut(&str) -> Result<Option<Vec<String>>>,
    ) -> Result<()> {
        if seen.iter().any(|other| other == module) {
            return Ok(());
        }
        seen.push(module.to_owned());
        let Some(before) = depends(module)? else { return Ok(()) };
        before.iter().try_for_each(|other| visit(other, seen, order, depends))?;
        order.push(module.to_owned());
        Ok(())
    }
    let (mut seen, mut order) = (Vec::new(), Vec::new());
    wanted.iter().try_for_each(|module| visit(module, &mut seen, &mut order, &mut depends))?;
    Ok(order)
}

/// What a module says of itself: the package has no `modules.dep`, which is made where a kernel is installed.
fn depends(content: &[u8]) -> Vec<String> {
    let says = b"\0depends=";
    let Some(at) = content.windows(says.len()).position(|bytes| bytes == says) else { return Vec::new() };
    let text = content[at + says.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Finds the modules below `folder`.
fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.insert(name(&path), path);
        }
    }
    Ok(())
}

/// The module of a file, as modules name each other.
fn name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output().context("cannot run xz")?;
    ensure!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_after_what_it_depends_on_and_once() {
        let order = order(&["bridge", "vlan"], |module| {
            Ok(match module {
                "bridge" => Some(vec!["stp".to_owned(), "llc".to_owned()]),
                "stp" | "vlan" => Some(vec!["llc".to_owned(), "built_in".to_owned()]),
                "built_in" => None,
                _ => Some(Vec::new()),
            })
        });
        assert_eq!(order.unwrap(), ["llc", "stp", "bridge", "vlan"]);
    }

    #[test]
    fn dependencies_are_read_from_the_module_itself() {
        assert_eq!(depends(b"ELF\0license=GPL\0depends=stp,llc\0name=bridge\0"), ["stp", "llc"]);
        assert_eq!(depends(b"ELF\0depends=\0name=llc\0"), [""; 0]);
        assert_eq!(depends(b"ELF"), [""; 0]);
    }

    #[test]
    fn a_file_names_its_module() {
        assert_eq!(name(Path::new("kernel/net/nf-log.ko.xz")), "nf_log");
        assert_eq!(name(Path::new("8021q.ko")), "8021q");
    }
}
