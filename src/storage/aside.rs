//! Directories that are filled before they have their name.
//!
//! Of a batch of small files, several of which belong in a directory that is not there yet, those are made in a
//! directory of the staging one, each under its final name. When all of the batch are durable, the directory gets its
//! name, and they theirs with it: a file costs neither a link nor a rename. Only the batch that makes a directory can
//! fill it so; those that follow store into it as into any other.
//!
//! Invariants:
//! - It is moved as a whole only while every file that was ever made in it is staged and durable: one that failed, or
//!   was given up, has left a name whose removal need not survive a crash.
//! - Otherwise, and when somebody else has made the directory meanwhile, its files get their names one by one.
//! - What is left of one that was not moved goes with its last handle, or is cleared away when the store is opened.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result as IoResult};

use super::sys;
use super::tree::Still;
use super::upload::{Made, Place, Staging};
use super::walk::{Directory, hidden_name, is_hidden};
use super::{Inner, lock};
use crate::error::{ErrorKind, Result};
use crate::path::{Component, RemotePath};

/// Files of a batch in one directory from which on it is worth it: it costs about as much as three of them. Tests are
/// content with two.
const FILES_LEAST: usize = if cfg!(test) { 2 } else { 8 };

/// The directories of a batch that may be built aside, by their paths; those of which it is known have one.
#[derive(Default)]
pub(super) struct Asides {
    wanted: Vec<(Vec<Component>, Option<Arc<Aside>>)>,
    /// The one that was asked for last: mostly the next, too.
    latest: usize,
}

/// A directory that is filled in the staging directory.
pub(super) struct Aside {
    store: Arc<Inner>,
    /// Knows it as made for its sender, until it turns out not to be.
    made: Arc<Made>,
    /// Its name there.
    staged: String,
    pub(super) directory: Arc<Directory>,
    /// Where it belongs.
    parent: Arc<Directory>,
    components: Vec<Component>,
    /// Something was made in it that is not to be published.
    is_spoiled: AtomicBool,
    stage: Mutex<Stage>,
}

/// How far it has come.
enum Stage {
    Built,
    /// It has its name.
    Moved,
    /// Its files go into this one, each by itself.
    Apart(Arc<Directory>),
}

impl Asides {
    /// For a batch of files of these names.
    pub(super) fn of<'a>(paths: impl Iterator<Item = &'a RemotePath>) -> Asides {
        let mut counts: Vec<(&[Component], usize)> = Vec::new();
        for (_, parent) in paths.filter_map(|path| path.components().split_last()) {
            // Files of one directory mostly follow one another, and if not, it is merely not built aside.
            match counts.last_mut() {
                Some((latest, count)) if *latest == parent => *count += 1,
                _ => counts.push((parent, 1)),
            }
        }
        let many = counts.into_iter().filter(|(parent, count)| *count >= FILES_LEAST && !parent.is_empty());
        Asides { wanted: many.map(|(parent, _)| (parent.to_vec(), None)).collect(), latest: 0 }
    }

    fn find(&mut self, components: &[Component]) -> Option<&mut Option<Arc<Aside>>> {
        if self.wanted.get(self.latest).is_none_or(|(wanted, _)| wanted != components) {
            self.latest = self.wanted.iter().position(|(wanted, _)| wanted == components)?;
        }
        self.wanted.get_mut(self.latest).map(|(_, aside)| aside)
    }

    /// The one of this path, if it was begun.
    pub(super) fn begun(&mut self, store: &Arc<Inner>, components: &[Component]) -> Option<&Arc<Aside>> {
        self.find(components)?.as_ref().filter(|aside| Arc::ptr_eq(&aside.store, store))
    }

    /// The one of this path, which is begun if it can be.
    pub(super) fn open(
        &mut self,
        store: &Arc<Inner>,
        made: &Arc<Made>,
        components: &[Component],
    ) -> Result<Option<Arc<Aside>>> {
        let Some(aside) = self.find(components) else { return Ok(None) };
        if let Some(aside) = aside {
            return Ok(Arc::ptr_eq(&aside.store, store).then(|| Arc::clone(aside)));
        }
        *aside = Aside::begin(store, made, components)?.map(Arc::new);
        let begun = aside.clone();
        if begun.is_none() {
            self.wanted.swap_remove(self.latest);
        }
        Ok(begun)
    }
}

impl Aside {
    /// Begins one; none where the directory is there, or cannot be built so.
    fn begin(store: &Arc<Inner>, made: &Arc<Made>, components: &[Component]) -> Result<Option<Aside>> {
        let (Some(state), Some((name, above))) = (&store.state, components.split_last()) else { return Ok(None) };
        // With a sync for each file they are published one by one.
        if store.options.sync_each || store.graft.is_some() || is_hidden(name.as_bytes()) {
            return Ok(None);
        }
        match store.directory_of(components) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            _ => return Ok(None),
        }
        let (parent, _) = store.directory_made(above)?;
        if sys::status_at(&*parent, name.as_bytes()).err() != Some(Errno::NOENT) || !store.can_stage_in_state(&parent) {
            return Ok(None);
        }
        let make = || {
            let staged = hidden_name()?;
            let mode = (store.options.directory_mode.apply(0o777) | 0o700) & 0o777;
            sys::make_directory(&state.staging, staged.as_bytes(), Mode::from_raw_mode(mode))?;
            let directory = sys::open_directory_at(&state.staging, staged.as_bytes()).and_then(Directory::new);
            let directory = directory.inspect_err(|_| {
                // Deliberate loss: it is cleared away when the store is opened.
                let _ = sys::remove_directory(&state.staging, staged.as_bytes());
            })?;
            IoResult::Ok((staged, directory))
        };
        // What keeps it from being made will be met again, and told, where the directory is made in its place.
        let Ok((staged, directory)) = make() else { return Ok(None) };
        // Its number may have been that of another directory, which someone removed.
        store.durable.forget(directory.identity);
        let aside = Aside {
            store: Arc::clone(store),
            made: Arc::clone(made),
            staged,
            directory: store.directories.share(directory),
            parent,
            components: components.to_vec(),
            is_spoiled: AtomicBool::new(false),
            stage: Mutex::new(Stage::Built),
        };
        store.set_mode(&aside.directory, None, 0o700, components)?;
        made.add_directory(&aside.directory);
        Ok(Some(aside))
    }

    /// Makes a file in it, under its final name.
    pub(super) fn make_file(&self, name: &Component, mode: u32) -> IoResult<OwnedFd> {
        sys::open_at(&*self.directory, name.as_bytes(), OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, mode)
    }

    /// A file of it will not be published.
    pub(super) fn spoil(&self) {
        self.is_spoiled.store(true, Ordering::SeqCst);
    }

    /// Gives the directory its name, if that can still be; otherwise its files go into what is there by now. All files
    /// that were staged in it are durable.
    ///
    /// # Errors
    /// As [`Inner::directory_made`].
    fn place(&self, still: &Still<'_>) -> Result<Stage> {
        if let (Some(state), Some((name, above))) = (&self.store.state, self.components.split_last())
            && !self.is_spoiled.load(Ordering::SeqCst)
            && self.store.check_looked(&self.parent, above, still).is_ok()
            && sys::rename_new(&state.staging, self.staged.as_bytes(), &*self.parent, name.as_bytes()).is_ok()
        {
            // Nothing takes its place while this is held.
            self.directory.looked.store(self.store.exchanges.count(), Ordering::SeqCst);
            return Ok(Stage::Moved);
        }
        Ok(Stage::Apart(self.store.directory_made(&self.components)?.0))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let (Some(state), false) = (&self.store.state, matches!(*lock(&self.stage), Stage::Moved)) {
            // Its number may soon be that of another directory.
            self.made.forget_directory(&self.directory);
            // Deliberate loss: what is in it could not be removed, and it is cleared away when the store is opened.
            let _ = sys::remove_directory(&state.staging, self.staged.as_bytes());
        }
    }
}

impl Staging {
    /// Gives the directory that this file was made in its name, or leads the file to the one that has it.
    pub(super) fn place_directory(&mut self, still: &Still<'_>) -> Result<()> {
        let Place::Aside(aside, _) = &self.place else { return Ok(()) };
        let mut stage = lock(&aside.stage);
        if matches!(*stage, Stage::Built) {
            *stage = aside.place(still)?;
        }
        if let Stage::Apart(directory) = &*stage {
            self.directory = Arc::clone(directory);
        }
        Ok(())
    }

    /// Whether it has its name since its directory has.
    pub(super) fn came_with_directory(&self) -> bool {
        matches!(&self.place, Place::Aside(aside, _) if matches!(*lock(&aside.stage), Stage::Moved))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::hash::Root;
    use crate::storage::simulated;
    use crate::storage::{FileMetadata, IfExists, NewFile, Outcome, Parents, Staged, Store, StoreOptions, Upload};

    struct World {
        _folder: tempfile::TempDir,
        root: PathBuf,
        store: Store,
    }

    fn world(options: StoreOptions) -> World {
        // On the disk of the build directory, which unlike the usual place for such files is rarely tmpfs.
        let base = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        let folder = tempfile::tempdir_in(base).unwrap();
        let root = folder.path().join("root");
        let store = Store::open_served(&root, options).unwrap();
        World { _folder: folder, root, store }
    }

    fn path(name: &str) -> RemotePath {
        RemotePath::parse(name.as_bytes()).unwrap()
    }

    fn parents(names: &[&str]) -> Parents {
        let paths: Vec<RemotePath> = names.iter().map(|name| path(name)).collect();
        let mut parents = Parents::default();
        parents.build_aside(paths.iter());
        parents
    }

    impl World {
        fn begin(&self, parents: &mut Parents, name: &str, if_exists: IfExists) -> Upload {
            let options = NewFile { size: Some(1), if_exists, make_parents: true, mode: None };
            self.store.begin_in(parents, &path(name), options).unwrap()
        }

        fn stage(&self, parents: &mut Parents, name: &str, content: u8, if_exists: IfExists) -> Staged {
            let upload = self.begin(parents, name, if_exists);
            upload.write_at(0, &[content]).unwrap();
            let root = Root::of(&[content]);
            let metadata = FileMetadata { mode: None, mtime: None, root, upload_id: [7; 16], xattrs: None };
            upload.finish(1, metadata).unwrap()
        }

        fn inode(&self, name: &str) -> Option<u64> {
            std::fs::metadata(self.root.join(name)).ok().map(|metadata| metadata.ino())
        }

        /// The names in a directory, and the first byte of each file.
        fn content(&self, name: &str) -> Vec<(String, u8)> {
            let entries = std::fs::read_dir(self.root.join(name)).unwrap().map(Result::unwrap);
            let mut content: Vec<(String, u8)> = entries
                .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()[0]))
                .collect();
            content.sort();
            content
        }

        #[track_caller]
        fn check_staging_is_empty(&self) {
            let staging = self.root.join(crate::storage::STATE_NAME).join("staging");
            assert_eq!(std::fs::read_dir(staging).unwrap().count(), 0, "something is left in staging");
        }
    }

    fn aside_inode(parents: &Parents, name: &str) -> Option<u64> {
        let components = path(name);
        let Asides { wanted, .. } = &parents.asides;
        let aside = wanted.iter().find(|(wanted, _)| wanted == components.components())?.1.as_ref();
        aside.map(|aside| aside.directory.identity.inode)
    }

    fn is_world_readable(path: &Path) -> bool {
        path.metadata().unwrap().permissions().mode() & 0o005 == 0o005
    }

    const NAMES: [&str; 4] = ["in/new/a", "in/new/b", "in/new/c", "in/new/d"];

    #[test]
    fn a_new_directory_gets_its_name_with_all_its_files() {
        let world = world(StoreOptions::default());
        let mut parents = parents(&NAMES);
        let mut staged: Vec<Staged> = Vec::new();
        for (index, name) in NAMES.iter().enumerate() {
            assert!(parents.lacks_or_replaces(&world.store, &path(name)) || index == 0, "{name}");
            staged.push(world.stage(&mut parents, name, index as u8, IfExists::Overwrite));
        }
        assert_eq!(world.inode("in/new"), None, "it is there before its files are");
        let aside = aside_inode(&parents, "in/new");
        for published in world.store.publish(staged) {
            assert_eq!(published.unwrap().outcome, Outcome::Created);
        }
        assert!(aside.is_some() && world.inode("in/new") == aside, "it is another directory");
        let expected: Vec<(String, u8)> =
            ["a", "b", "c", "d"].iter().zip(0..).map(|(name, byte)| ((*name).to_owned(), byte)).collect();
        assert_eq!(world.content("in/new"), expected);
        drop(parents);
        world.check_staging_is_empty();
        std::fs::create_dir(world.root.join("plain")).unwrap();
        assert_eq!(is_world_readable(&world.root.join("in/new")), is_world_readable(&world.root.join("plain")));
    }

    #[test]
    fn somebody_else_who_makes_it_first_is_met_file_by_file() {
        for (policy, expected) in [(IfExists::Overwrite, 1), (IfExists::Fail, b'!'), (IfExists::Skip, b'!')] {
            let world = world(StoreOptions::default());
            let mut parents = parents(&NAMES);
            let stage = |(index, name): (usize, &&str)| world.stage(&mut parents, name, index as u8, policy);
            let staged: Vec<Staged> = NAMES.iter().enumerate().map(stage).collect();
            std::fs::create_dir_all(world.root.join("in/new")).unwrap();
            std::fs::write(world.root.join("in/new/b"), "!").unwrap();
            let published = world.store.publish(staged);
            assert_eq!(
                published.iter().filter(|answer| answer.is_err()).count(),
                usize::from(policy == IfExists::Fail)
            );
            assert_ne!(world.inode("in/new"), aside_inode(&parents, "in/new"));
            let bytes: Vec<u8> = world.content("in/new").into_iter().map(|(_, byte)| byte).collect();
            assert_eq!(bytes, [0, expected, 2, 3], "{policy:?}");
            drop((parents, published));
            world.check_staging_is_empty();
        }
    }

    #[test]
    fn what_it_belongs_in_is_looked_up_anew_when_it_was_replaced() {
        let world = world(StoreOptions::default());
        let mut parents = parents(&NAMES);
        let staged: Vec<Staged> =
            NAMES.iter().map(|name| world.stage(&mut parents, name, 1, IfExists::Overwrite)).collect();
        // As if a tree had taken the place of `in`.
        std::fs::rename(world.root.join("in"), world.root.join("was-in")).unwrap();
        std::fs::create_dir(world.root.join("in")).unwrap();
        assert!(world.store.publish(staged).into_iter().all(|answer| answer.is_ok()));
        assert_eq!(world.content("in/new").len(), NAMES.len());
        assert_eq!(std::fs::read_dir(world.root.join("was-in")).unwrap().count(), 0);
        drop(parents);
        world.check_staging_is_empty();
    }

    #[test]
    fn one_that_is_given_up_keeps_the_others_from_coming_together() {
        let world = world(StoreOptions::default());
        let mut parents = parents(&NAMES);
        let mut staged = vec![world.stage(&mut parents, NAMES[0], 0, IfExists::Overwrite)];
        drop(world.begin(&mut parents, NAMES[1], IfExists::Overwrite));
        staged.push(world.stage(&mut parents, NAMES[2], 2, IfExists::Overwrite));
        assert!(world.store.publish(staged).into_iter().all(|answer| answer.is_ok()));
        assert_ne!(world.inode("in/new"), aside_inode(&parents, "in/new"), "its removal may not survive a crash");
        assert_eq!(world.content("in/new"), [("a".to_owned(), 0), ("c".to_owned(), 2)]);
        drop(parents);
        world.check_staging_is_empty();
    }

    #[test]
    fn the_last_of_one_name_stays() {
        for policy in [IfExists::Overwrite, IfExists::Rename] {
            let world = world(StoreOptions::default());
            let mut parents = parents(&["d/a", "d/a", "d/b"]);
            let staged: Vec<Staged> = [("d/a", 1), ("d/a", 2), ("d/b", 3)]
                .map(|(name, byte)| world.stage(&mut parents, name, byte, policy))
                .into();
            assert!(world.store.publish(staged).into_iter().all(|answer| answer.is_ok()));
            let expected: &[(&str, u8)] =
                if policy == IfExists::Overwrite { &[("a", 2), ("b", 3)] } else { &[("a", 1), ("a (1)", 2), ("b", 3)] };
            let content = world.content("d");
            assert_eq!(content.iter().map(|(name, byte)| (&**name, *byte)).collect::<Vec<_>>(), expected);
            drop(parents);
            world.check_staging_is_empty();
        }
    }

    #[test]
    fn what_is_not_published_leaves_nothing() {
        let world = world(StoreOptions::default());
        let mut parents = parents(&NAMES);
        let staged: Vec<Staged> =
            NAMES.iter().map(|name| world.stage(&mut parents, name, 0, IfExists::Overwrite)).collect();
        drop(staged);
        drop(parents);
        world.check_staging_is_empty();
        assert_eq!(world.inode("in/new"), None);
    }

    /// Switches the simulated disk off, also when the test fails.
    struct Simulated;

    impl Drop for Simulated {
        fn drop(&mut self) {
            simulated::end();
        }
    }

    /// Stores the files, one of which is given up if asked for, on a disk with a fault; looks at all that a power cut
    /// could leave. Returns how many calls that took.
    #[track_caller]
    fn check_what_is_left(gives_up: bool, fault: impl Fn(&mut simulated::Disk), what: &str) -> u64 {
        let world = world(StoreOptions::default());
        simulated::begin(simulated::Random::new(1), simulated::Lie::None);
        let _simulated = Simulated;
        simulated::with(|disk| {
            disk.adopt(&world.root);
            fault(disk);
        });
        let mut parents = parents(&NAMES);
        let mut stage = |name: &str| {
            let options = NewFile { size: Some(3), make_parents: true, ..NewFile::default() };
            let upload = world.store.begin_in(&mut parents, &path(name), options)?;
            upload.write_at(0, b"new")?;
            let root = Root::of(b"new");
            upload.finish(3, FileMetadata { mode: None, mtime: None, root, upload_id: [7; 16], xattrs: None })
        };
        let mut staged = Vec::new();
        for name in NAMES {
            staged.extend(stage(name));
        }
        if gives_up {
            drop(stage("in/new/given-up"));
        }
        let answers: Vec<String> =
            world.store.publish(staged).into_iter().flatten().map(|it| it.path.to_string()).collect();
        let left = |name: &str| simulated::with(|disk| disk.survivors(name));
        for survivor in NAMES.iter().flat_map(|name| left(name).into_iter().map(move |left| (name, left))) {
            let (name, is_stored) = (survivor.0, answers.iter().any(|answer| answer == survivor.0));
            match survivor.1 {
                simulated::Survivor::Absent => {
                    assert!(!is_stored, "{what}: {name} may be lost, and was told as stored")
                }
                simulated::Survivor::Unsynced => panic!("{what}: {name} may be a part of what it should be"),
                simulated::Survivor::Whole(content, _) => assert_eq!(**content, *b"new", "{what}: {name}"),
            }
        }
        let is_absent = |left: &simulated::Survivor| matches!(left, simulated::Survivor::Absent);
        assert!(left("in/new/given-up").iter().all(is_absent), "{what}: what was given up may be there");
        drop(parents);
        simulated::with(|disk| disk.calls())
    }

    #[test]
    fn no_cut_and_no_failure_leaves_a_part_or_loses_what_was_told() {
        for gives_up in [false, true] {
            let calls = check_what_is_left(gives_up, |_| {}, "no fault");
            assert!(calls > 20, "the simulated disk sees the calls");
            for call in 0..calls as usize {
                check_what_is_left(gives_up, |disk| disk.die_in(call), &format!("killed at call {call}"));
                for errno in [Errno::IO, Errno::NOSPC, Errno::EXIST] {
                    let what = format!("call {call} fails with {errno:?}");
                    check_what_is_left(gives_up, |disk| disk.fail_in(call, errno), &what);
                }
            }
        }
    }

    #[test]
    fn it_is_done_only_where_it_can_be() {
        let each = world(StoreOptions { sync_each: true, ..StoreOptions::default() });
        let inherits = world(StoreOptions::default());
        std::fs::create_dir(inherits.root.join("in")).unwrap();
        std::fs::set_permissions(inherits.root.join("in"), std::fs::Permissions::from_mode(0o2755)).unwrap();
        let there = world(StoreOptions::default());
        std::fs::create_dir_all(there.root.join("in/new")).unwrap();
        let alone = world(StoreOptions::default());
        for (world, names) in [(&each, &NAMES[..]), (&inherits, &NAMES), (&there, &NAMES), (&alone, &NAMES[..1])] {
            let mut parents = parents(names);
            let staged = world.stage(&mut parents, NAMES[0], 0, IfExists::Overwrite);
            assert!(world.inode("in/new").is_some(), "it is built aside");
            assert!(world.store.publish(vec![staged]).into_iter().all(|answer| answer.is_ok()));
            assert_eq!(world.content("in/new"), [("a".to_owned(), 0)]);
        }
    }
}
