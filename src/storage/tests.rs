use super::*;
use crate::hash::Root;

const SIZES: [usize; 14] = [
    0, 1, 1023, 1024, 1025, 65_535, 65_536, 1_048_575, 1_048_576, 1_048_577, 4_194_304, 4_194_305, 8_388_608, 9_000_001,
];

fn path(text: &str) -> RemotePath {
    RemotePath::parse(text.as_bytes()).unwrap()
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index / 7 + index * 31) as u8 ^ seed).collect()
}

fn metadata(content: &[u8]) -> FileMetadata {
    FileMetadata { mode: None, mtime: None, root: Root::of(content), upload_id: [7; 16] }
}

fn stage(store: &Store, name: &str, content: &[u8], if_exists: IfExists) -> Result<Staged> {
    let upload =
        store.begin(&path(name), NewFile { size: Some(content.len() as u64), if_exists, make_parents: true })?;
    let pool = crate::buffer::Pool::new(1 << 20);
    let mut buffer = pool.try_lease(1 << 20).unwrap();
    for (index, group) in content.chunks(1 << 20).enumerate() {
        buffer[..group.len()].copy_from_slice(group);
        upload.write_at((index as u64) << 20, &buffer[..group.len()])?;
    }
    upload.finish(content.len() as u64, metadata(content))
}

fn put(store: &Store, name: &str, content: &[u8], if_exists: IfExists) -> Result<Published> {
    store.publish(vec![stage(store, name, content, if_exists)?]).pop().unwrap()
}

fn content(store: &Store, name: &str) -> Result<Vec<u8>> {
    let file = store.open_file(&path(name))?;
    let mut content = vec![0; file.size() as usize];
    file.read_at(0, &mut content)?;
    file.check_unchanged()?;
    Ok(content)
}

fn disk() -> tempfile::TempDir {
    // On the disk of the build directory, which unlike the usual place for such files is rarely tmpfs.
    let base = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    tempfile::tempdir_in(base).unwrap()
}

#[test]
fn every_size_comes_back() {
    let dir = disk();
    for (kind, store) in [
        ("served", Store::open_served(&dir.path().join("served"), StoreOptions::default()).unwrap()),
        ("local", Store::open_local(&dir.path().join("a/b")).unwrap()),
    ] {
        assert_eq!(store.warnings(), [""; 0]);
        for size in SIZES {
            for seed in [0, 1] {
                let name = format!("in/{size}");
                let expected = bytes(size, seed);
                let published = put(&store, &name, &expected, IfExists::Overwrite).unwrap();
                assert_eq!(content(&store, &name).unwrap(), expected, "{kind} {size}");
                let file = store.open_file(&path(&name)).unwrap();
                assert_eq!(file.version(), published.version);
                assert_eq!(file.recorded_root(), Some(Root::of(&expected)));
                let outcome = if seed == 0 { Outcome::Created } else { Outcome::Replaced };
                assert_eq!(published.outcome, outcome, "{kind} {size}");
            }
        }
        assert_eq!(store.list(&path("in"), None).unwrap().count(), SIZES.len());
    }
}
