//! A folder of YAML as the source.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use dataplane_agent::watch::file as file_source;
use tempfile::TempDir;

use crate::observer::{NODE, Observer};

/// A Service on six lines.
fn service(name: &str, number: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: 10.96.0.{number}\n  ports: [{{port: 80}}]\n"
    )
}

/// A folder with a Service `a` in `a.yaml`, and an observer that has heard of it.
async fn start() -> Result<(TempDir, Observer)> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("a.yaml"), service("a", 1))?;
    let mut observer = Observer::of_folder(folder.path());
    observer.until_synced().await?;
    assert_eq!(observer.services(), ["a"]);
    observer.take_heard();
    Ok((folder, observer))
}

async fn until_services(observer: &mut Observer, expected: &[&str]) -> Result<()> {
    let names: Vec<String> = expected.iter().map(ToString::to_string).collect();
    observer
        .until("the Services are as expected", |state| {
            state.services.keys().map(|name| &*name.name).eq(names.iter().map(|name| &**name))
        })
        .await
}

#[tokio::test]
async fn every_kind_is_read_from_documents_lists_and_json() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let slice = "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-1, namespace: shop, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1]}]
";
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: Node, metadata: {{name: {NODE}}}}}\n\
         - {{apiVersion: v1, kind: Node, metadata: {{name: node-b}}}}\n"
    );
    let cidr =
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\nspec: {cidrs: [10.100.0.0/16]}\n";
    let all = format!("{}---\n{slice}---\n{list}---\n{cidr}---\nkind: Pod\n", service("a", 1));
    fs::write(folder.path().join("all.yml"), all)?;
    let json = "{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"b\"},\"spec\":{\"clusterIP\":\"10.96.0.2\"}}";
    fs::write(folder.path().join("b.json"), json)?;
    fs::write(folder.path().join("README.md"), "not: [yaml")?;
    fs::write(folder.path().join(".hidden.yaml"), "not: [yaml")?;
    let mut observer = Observer::of_folder(folder.path());
    observer.until_synced().await?;
    assert_eq!(observer.services(), ["a", "b"]);
    assert_eq!(observer.state.slices.len(), 1);
    assert_eq!(observer.state.service_cidrs["more"], ["10.100.0.0/16".parse()?]);
    assert_eq!(observer.state.nodes.keys().collect::<Vec<_>>(), [NODE], "other nodes do not count");
    assert_eq!(observer.log.text(), "");
    observer.ended().await
}

#[tokio::test]
async fn files_come_change_move_and_go() -> Result<()> {
    let (folder, mut observer) = start().await?;
    let path = |name: &str| folder.path().join(name);
    fs::write(path("b.yaml"), service("b", 2))?;
    until_services(&mut observer, &["a", "b"]).await?;
    // As editors and configuration tools replace files.
    fs::write(path(".c.tmp"), service("c", 3))?;
    fs::rename(path(".c.tmp"), path("b.yaml"))?;
    until_services(&mut observer, &["a", "c"]).await?;
    fs::rename(path("b.yaml"), path("b.txt"))?;
    until_services(&mut observer, &["a"]).await?;
    fs::remove_file(path("a.yaml"))?;
    until_services(&mut observer, &[]).await?;
    assert_eq!(observer.take_heard().len(), 5, "each object once: {:?}", observer.heard);
    observer.ended().await
}

#[tokio::test]
async fn p58_what_means_the_same_is_not_sent_again() -> Result<()> {
    let (folder, mut observer) = start().await?;
    fs::write(folder.path().join("a.yaml"), service("a", 1))?;
    fs::write(folder.path().join("a.yaml"), format!("# A comment.\n{}", service("a", 1)))?;
    fs::write(folder.path().join("a.yaml"), format!("{}---\n{}", service("a", 1), service("b", 2)))?;
    until_services(&mut observer, &["a", "b"]).await?;
    fs::write(folder.path().join("c.yaml"), service("c", 3))?;
    until_services(&mut observer, &["a", "b", "c"]).await?;
    assert_eq!(observer.take_heard().len(), 2, "{:?}", observer.heard);
    observer.ended().await
}

#[tokio::test]
async fn a_partial_write_is_waited_for() -> Result<()> {
    let (folder, mut observer) = start().await?;
    let text = format!("{}---\n{}", service("a", 1), service("b", 2));
    // The part that is there first is good YAML, and says that Service `b` does not exist.
    let (first, second) = text.split_at(text.find("---").unwrap_or_default());
    let mut file = File::create(folder.path().join("b.yaml"))?;
    fs::remove_file(folder.path().join("a.yaml"))?;
    file.write_all(first.as_bytes())?;
    observer.listen(Duration::from_millis(300)).await;
    file.write_all(second.as_bytes())?;
    drop(file);
    until_services(&mut observer, &["a", "b"]).await?;
    assert_eq!(observer.take_heard().len(), 1, "{:?}", observer.heard);
    assert_eq!(observer.log.text(), "");
    observer.ended().await
}

#[tokio::test]
async fn a_broken_file_is_reported_by_line_keeps_its_last_good_state_and_recovers() -> Result<()> {
    let (folder, mut observer) = start().await?;
    let path = folder.path().join("a.yaml");
    let good = format!("{}---\n{}", service("a", 1), service("b", 2));
    fs::write(&path, &good)?;
    until_services(&mut observer, &["a", "b"]).await?;
    observer.take_heard();

    // A torn write: the second document ends within its last line.
    let torn = good.trim_end().trim_end_matches("}]");
    fs::write(&path, torn)?;
    // The parser misses the rest where the file ends.
    let line = torn.lines().count() + 1;
    observer.until_logged("its last good state is kept").await?;
    let warnings = observer.log.lines_with("WARN");
    let [warning] = &*warnings else { anyhow::bail!("one warning, not {warnings:?}") };
    let place = format!("{}:{line}:", path.display());
    assert!(warning.contains(&place) && warning.contains("document 2: "), "{place} in {warning}");

    // The others go on meanwhile, and the same fault is not reported again.
    fs::write(folder.path().join("c.yaml"), service("c", 3))?;
    until_services(&mut observer, &["a", "b", "c"]).await?;
    fs::write(&path, torn)?;
    observer.listen(Duration::from_millis(300)).await;
    assert_eq!(observer.log.lines_with("WARN").len(), 1, "{}", observer.log.text());

    fs::write(&path, good.replace("10.96.0.2", "10.96.0.9"))?;
    observer.until_logged("good again").await?;
    observer.listen(Duration::from_millis(100)).await;
    assert_eq!(observer.take_heard().len(), 2, "c, and b with its new address: {:?}", observer.heard);
    observer.ended().await
}

#[tokio::test]
async fn a_wrong_type_is_reported_by_file_line_and_field() -> Result<()> {
    let (folder, mut observer) = start().await?;
    let path = folder.path().join("b.yaml");
    fs::write(&path, service("b", 2).replace("port: 80", "port: http"))?;
    observer.until_logged("ignored until it is good").await?;
    let expected = format!("{}:6:", path.display());
    let warnings = observer.log.lines_with(&expected);
    assert_eq!(warnings.len(), 1, "{}", observer.log.text());
    assert!(warnings[0].contains("spec.ports[0].port: invalid type: string \"http\""), "{}", warnings[0]);
    assert_eq!(file_source::check(folder.path())?.len(), 1);
    observer.ended().await
}

#[tokio::test]
async fn an_object_that_two_files_define_is_the_first_ones_and_both_are_named() -> Result<()> {
    let (folder, mut observer) = start().await?;
    let path = |name: &str| folder.path().join(name);
    fs::write(path("b.yaml"), format!("{}---\n{}", service("b", 2), service("a", 9)))?;
    until_services(&mut observer, &["a", "b"]).await?;
    let errors = observer.log.lines_with("ERROR");
    assert_eq!(errors.len(), 1, "{}", observer.log.text());
    let expected = format!(
        "Service default/a is defined twice: in {} (document 1), which counts, and in {} (document 2)",
        path("a.yaml").display(),
        path("b.yaml").display()
    );
    assert!(errors[0].contains(&expected), "{expected}\n{}", errors[0]);
    assert_eq!(observer.take_heard().len(), 1, "the first stays: {:?}", observer.heard);

    fs::remove_file(path("a.yaml"))?;
    let is_second = |state: &crate::observer::State| {
        state.services.values().next().is_some_and(|service| service.cluster_ips[0].to_string() == "10.96.0.9")
    };
    observer.until("the second takes its place", is_second).await?;
    observer.ended().await
}

#[tokio::test]
async fn p58_nothing_is_synced_while_a_file_has_never_been_good() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("a.yaml"), service("a", 1))?;
    fs::write(folder.path().join("b.yaml"), "kind: [")?;
    let mut observer = Observer::of_folder(folder.path());
    until_services(&mut observer, &["a"]).await?;
    observer.listen(Duration::from_millis(200)).await;
    assert!(observer.state.synced.is_empty());
    fs::write(folder.path().join("b.yaml"), service("b", 2))?;
    observer.until_synced().await?;
    assert_eq!(observer.services(), ["a", "b"]);
    observer.ended().await
}

#[tokio::test]
async fn p58_a_folder_that_vanishes_keeps_its_last_state_until_it_is_back() -> Result<()> {
    let base = tempfile::tempdir()?;
    let folder = base.path().join("folder");
    fs::create_dir(&folder)?;
    fs::write(folder.join("a.yaml"), service("a", 1))?;
    let mut observer = Observer::of_folder(&folder);
    observer.until_synced().await?;
    observer.take_heard();
    fs::rename(&folder, base.path().join("away"))?;
    fs::remove_dir_all(base.path().join("away"))?;
    observer.until_logged("the last state is kept").await?;
    assert_eq!((observer.take_heard().len(), observer.services()), (0, vec!["a"]));
    fs::create_dir(&folder)?;
    fs::write(folder.join("a.yaml"), format!("{}---\n{}", service("a", 1), service("b", 2)))?;
    until_services(&mut observer, &["a", "b"]).await?;
    fs::write(folder.join("c.yaml"), service("c", 3))?;
    until_services(&mut observer, &["a", "b", "c"]).await?;
    assert_eq!(observer.take_heard().len(), 2, "{:?}", observer.heard);
    observer.ended().await
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_says_what_to_do() -> Result<()> {
    let base = tempfile::tempdir()?;
    let refused = async |path: PathBuf| {
        let ended = Observer::of_folder(&path).ended().await;
        ended.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let missing = base.path().join("missing");
    let said = refused(missing.clone()).await;
    assert_eq!(
        said,
        format!("{}: no such folder; create it, or name another one with --file-source", missing.display())
    );
    let file: &Path = &base.path().join("file");
    fs::write(file, "")?;
    assert!(refused(file.to_owned()).await.contains(": not a folder; "));
    Ok(())
}
